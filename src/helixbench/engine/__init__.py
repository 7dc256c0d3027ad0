"""The engine: the training loop, its checkpoints, and the devices that it runs on."""
