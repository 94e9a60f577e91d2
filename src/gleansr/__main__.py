"""`gleansr` and `python -m gleansr`."""


def main() -> None:
    """Runs the command line. Ctrl-C is quiet from the first import on."""
    try:
        from gleansr.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
