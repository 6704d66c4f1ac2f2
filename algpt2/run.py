"""`python -m algpt2.run compare`: see `algpt2/compare.py`."""

from algpt2.compare import main

if __name__ == "__main__":
    main()
