"""`python -m algpt2.demo`: see `algpt2/demo/command.py`."""

from algpt2.demo.command import main

if __name__ == "__main__":
    main()
