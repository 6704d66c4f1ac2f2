"""From a text file to blocks of tokens: this project beside a plain `datasets.map` with `group_texts`.

    python benchmarks/packing.py data/wikitext-2/wiki.train.tokens --rounds 5 --output packing.json

Both sides read the same file with the same tokenizer, each round in a new process with an empty cache, one side after
the other, so that what else the machine does falls on both. Times are from the file to blocks that can be indexed,
without imports and loading the tokenizer.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("algpt2", "datasets")


def with_algpt2(file, tokenizer, length, cache):
    """Our blocks of a text file, as (blocks, tokens)."""
    from algpt2.data.corpus import read_documents
    from algpt2.data.packing import Blocks
    from algpt2.data.tokenized_text import tokenize

    text = tokenize(read_documents(file), tokenizer, cache=cache)
    return len(Blocks(text, length)), len(text.tokens)


def with_datasets(file, tokenizer, length, cache):
    """The blocks that transformers' run_clm example makes of a text file, as (blocks, tokens)."""
    import datasets

    datasets.disable_progress_bars()

    def group_texts(examples):
        joined = {key: list(itertools.chain(*examples[key])) for key in examples}
        total = len(joined["input_ids"]) // length * length
        result = {key: [t[i : i + length] for i in range(0, total, length)] for key, t in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    lines = datasets.load_dataset("text", data_files=file, split="train", cache_dir=cache, keep_linebreaks=True)
    tokenized = lines.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["text"])
    blocks = tokenized.map(group_texts, batched=True)
    return len(blocks), len(blocks) * length


def measure(side, file, tokenizer, length):
    """One round of one side, in this process."""
    from algpt2.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer)
    prepare = with_algpt2 if side == "algpt2" else with_datasets
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        blocks, tokens = prepare(file, tokenizer, length, cache)
        first = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        prepare(file, tokenizer, length, cache)
        again = time.perf_counter() - start
    return {"seconds": first, "again": again, "blocks": blocks, "tokens": tokens, "peak_mib": peak}


def summary(rounds):
    """The medians of each side, and of the ratios of the rounds."""
    sides = {}
    for side in SIDES:
        results = [round[side] for round in rounds]
        speeds = [result["tokens"] / result["seconds"] for result in results]
        sides[side] = {
            "tokens_per_second": statistics.median(speeds),
            **{key: statistics.median(result[key] for result in results) for key in results[0]},
        }
    ratios = [round["datasets"]["seconds"] / round["algpt2"]["seconds"] for round in rounds]
    return {"sides": sides, "times_as_fast": statistics.median(ratios), "ratios": ratios}


def main():
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="a text file")
    parser.add_argument("--tokenizer", metavar="DIR", help="default: one of 8,192 tokens trained on the file")
    parser.add_argument("--length", type=int, default=256, help="tokens in a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.file, arguments.tokenizer, arguments.length)))
        return

    with tempfile.TemporaryDirectory() as directory:
        if not arguments.tokenizer:
            from algpt2.data.corpus import read_documents
            from algpt2.data.train_tokenizer import train_tokenizer

            arguments.tokenizer = directory
            train_tokenizer(read_documents(arguments.file), 8192).save_pretrained(directory)
        command = [sys.executable, __file__, arguments.file, "--tokenizer", arguments.tokenizer]
        command += ["--length", str(arguments.length), "--side"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        rounds = []
        for number in range(arguments.rounds):
            sides = {}
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                process = subprocess.run([*command, side], env=environment, stdout=subprocess.PIPE, check=True)
                sides[side] = json.loads(process.stdout.splitlines()[-1])
            rounds.append(sides)
            print(f"round {number + 1}:", *(f"{side} {sides[side]['seconds']:.2f} s" for side in SIDES), flush=True)

    result = {"file": arguments.file, "bytes": Path(arguments.file).stat().st_size, "rounds": rounds, **summary(rounds)}
    from algpt2.tables import markdown_table

    rows = [("", "tokens/s", "first run, s", "second run, s", "peak memory, MiB")]
    for side, median in result["sides"].items():
        speed, seconds, again, peak = (median[key] for key in ("tokens_per_second", "seconds", "again", "peak_mib"))
        rows.append((side, f"{speed:,.0f}", f"{seconds:.2f}", f"{again:.3f}", f"{peak:,.0f}"))
    print("\n" + markdown_table(rows))
    print(f"\nalgpt2 is {result['times_as_fast']:.2f} times as fast (median of the rounds' ratios)")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
