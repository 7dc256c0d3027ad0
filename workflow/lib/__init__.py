"""The plain Python of the workflow: what its rules ask of the configuration and of the run folder.

The Snakefile puts the folder above on the path. Nothing here imports snakemake.
"""
