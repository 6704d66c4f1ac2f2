"""WikiText-2 and documentation as tokens: `python benchmarks/two_texts.py WIKITEXT DOCUMENTATION OUTPUT`.

A tokenizer of 4,096 tokens is trained on both training texts. OUTPUT gets it, the tokens of each text as a file of
uint16, and texts.json with the words and bytes that perplexity per word and bits per byte need.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from algpt2.data.corpus import read_documents
from algpt2.data.tokenized_text import tokenize
from algpt2.data.tokenizer import save_tokenizer
from algpt2.data.train_tokenizer import train_tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wikitext", type=Path)
    parser.add_argument("documentation", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--vocab-size", type=int, default=4096)
    arguments = parser.parse_args()
    files = {
        "train": (arguments.wikitext / "wiki.train.tokens", arguments.documentation / "train.txt"),
        "wikitext-valid": (arguments.wikitext / "wiki.valid.tokens",),
        "wikitext-test": (arguments.wikitext / "wiki.test.tokens",),
        "documentation-valid": (arguments.documentation / "valid.txt",),
    }
    texts = (text for path in files["train"] for text in read_documents(path))
    tokenizer = train_tokenizer(texts, arguments.vocab_size)
    arguments.output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, arguments.output)
    facts = {}
    for name, paths in files.items():
        parts = [tokenize(read_documents(path), tokenizer) for path in paths]
        tokens = np.concatenate([np.asarray(part.tokens) for part in parts])
        tokens.astype(np.uint16).tofile(arguments.output / f"{name}.uint16")
        facts[name] = {
            "tokens": len(tokens),
            "words": sum(int(part.words) for part in parts),
            "bytes": sum(int(part.bytes) for part in parts),
        }
        print(name, facts[name])
    (arguments.output / "texts.json").write_text(json.dumps({"vocabulary": len(tokenizer), **facts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
