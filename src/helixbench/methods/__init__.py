"""Generators behind one interface."""
