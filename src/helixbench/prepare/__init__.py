"""Raw pictures in, working pictures out: size, binary masks, split, leak check, raw masks,
reference crops.
"""
