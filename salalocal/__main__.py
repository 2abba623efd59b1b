"""`python -m salalocal` is the same as `salalocal`."""

from salalocal.cli import main

if __name__ == "__main__":
    main()
