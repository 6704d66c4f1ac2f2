"""`python -m algpt2.tokenization train`: see `algpt2/data/train_tokenizer.py`."""

from algpt2.data.train_tokenizer import main

if __name__ == "__main__":
    main()
