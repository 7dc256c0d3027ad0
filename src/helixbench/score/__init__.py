"""What generated pairs are worth as pictures: Inception Score, IC-LPIPS."""
