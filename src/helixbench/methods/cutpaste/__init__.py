"""CutPaste."""
