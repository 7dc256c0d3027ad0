"""HelixBench: reproducible few-shot industrial anomaly generation around Double Helix Diffusion."""

__version__ = "0.1.0"
