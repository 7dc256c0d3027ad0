"""HelixBench: reproducible few-shot industrial anomaly generation around Double Helix Diffusion."""

__version__ = "0.1.0"
__all__ = ["DHDiffPipeline", "__version__"]


def __getattr__(name: str):
    """`helixbench.DHDiffPipeline`, loaded when it is asked for: importing the package alone imports
    no torch.
    """
    if name != "DHDiffPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return import_module("helixbench.methods.dhdiff.pipeline").DHDiffPipeline
