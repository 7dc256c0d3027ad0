"""What generated pairs are worth as pictures: Inception Score, KID, IC-LPIPS, image-mask
agreement.
"""
