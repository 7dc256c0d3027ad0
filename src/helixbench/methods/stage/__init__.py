"""STAGE."""
