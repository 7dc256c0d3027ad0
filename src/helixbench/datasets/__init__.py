"""Raw data as their authors lay them out: a `Layout` per way of doing so, a fingerprint of the raw
pictures, and a set that is drawn in any of the layouts.

Nothing is decided here: pictures and masks are found and paired. `prepare` opens and judges them.
The modules directly in this package import neither numpy nor Pillow, since the workflow is parsed
with them.
"""
