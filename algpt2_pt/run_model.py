"""The command line of tGhattas/ALGPT2: see `algpt2_pt/tghattas/run_model.py`."""

from algpt2_pt.tghattas.run_model import main

if __name__ == "__main__":
    main()
