"""What every diffusion method shares: base model, training data, sampler."""
