"""Pictures and masks: reading them, checked; raw masks, symmetries, outlines."""
