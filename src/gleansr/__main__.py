"""`python -m gleansr` runs the command line."""

from gleansr.cli import main

if __name__ == "__main__":
    main()
