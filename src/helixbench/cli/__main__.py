"""`python -m helixbench.cli`: the console script by the name of its module."""

from helixbench.cli import main

if __name__ == "__main__":
    main()
