"""`python -m gleansr` is the command too."""

from gleansr.cli import main

if __name__ == "__main__":
    main()
