"""Double Helix Diffusion."""
