"""What generated pairs are worth as training data: downstream detectors and their metrics."""
