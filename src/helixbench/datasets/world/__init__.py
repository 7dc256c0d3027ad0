"""A wide drawn world of objects, surfaces and defects, for the training of a base model."""
