"""``python -m vlmkit``: the same command line, in the form torchrun starts (``torchrun -m vlmkit ...``)."""

from vlmkit.cli.app import main

if __name__ == "__main__":
    main()
