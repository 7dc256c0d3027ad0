"""Tables and figures: published numbers, measured numbers, pictures."""
