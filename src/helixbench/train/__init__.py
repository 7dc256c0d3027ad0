"""Stage `train`: base models and the methods that learn."""
