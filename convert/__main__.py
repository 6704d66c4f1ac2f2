"""`python -m convert`: see `convert/cli.py`."""

from convert.cli import main

if __name__ == "__main__":
    main()
