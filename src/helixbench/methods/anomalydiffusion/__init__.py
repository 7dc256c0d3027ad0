"""AnomalyDiffusion."""
