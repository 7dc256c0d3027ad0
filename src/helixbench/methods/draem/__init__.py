"""DRAEM's synthesis."""
