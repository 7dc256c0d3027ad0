"""Plan, mask quality gate and writing of pairs."""
