"""RealNet's synthesis."""
