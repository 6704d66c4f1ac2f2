"""The command line of tGhattas/ALGPT2: see `algpt2_pt/tghattas/train_tokenizer.py`."""

from algpt2_pt.tghattas.train_tokenizer import main

if __name__ == "__main__":
    main()
