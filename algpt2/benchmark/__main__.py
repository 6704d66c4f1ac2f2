"""`python -m algpt2.benchmark`: see `algpt2/benchmark/command.py`."""

from algpt2.benchmark.command import main

if __name__ == "__main__":
    main()
