"""DualAnoDiff."""
