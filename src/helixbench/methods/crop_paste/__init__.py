"""Crop&Paste."""
