"""What models lose in 8 and 4 bits, and how fast they are: `python benchmarks/precisions.py RUN RUN --dataset FILE`.

For each checkpoint and precision of the ONNX graph: the size of the graph, perplexity, and tokens/s of greedy decoding,
batch 1, 8 + 128 tokens. The models take turns within a round, and figures are medians.
"""

import argparse
import functools
import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from side_by_side import add_rounds, json_file

from algpt2.benchmark.timing import time_in_turns
from algpt2.checkpoints.checkpoint import opened
from algpt2.checkpoints.weights import parameter_count
from algpt2.cli import HelpFormatter, positive_int
from algpt2.evaluation.perplexity import evaluate, validation_text
from algpt2.onnx.graph import PRECISIONS, language_model
from algpt2.onnx.session import OnnxLanguageModel
from algpt2.tables import markdown_table

PROMPT, NEW_TOKENS = 8, 128


def decode(model):
    """Continue a prompt greedily."""
    decoding = model.start(np.arange(PROMPT)[None], PROMPT + NEW_TOKENS)
    for _ in range(NEW_TOKENS - 1):
        decoding.advance(decoding.logits.argmax(-1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=HelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, help="each with a tokenizer")
    parser.add_argument("--dataset", required=True, help="a text")
    parser.add_argument("--tokens", type=positive_int, help="measure the first N tokens (default: all)")
    parser.add_argument("--output", type=json_file, default="precisions.json", help="where the figures go")
    add_rounds(parser)
    arguments = parser.parse_args()
    figures, models = [], {}
    for directory in arguments.checkpoints:
        checkpoint = opened(directory)
        text, length = validation_text(checkpoint, arguments.dataset)
        text = replace(text, tokens=text.tokens[: arguments.tokens])
        for precision in PRECISIONS:
            content = language_model(checkpoint.config, checkpoint.weights, precision).SerializeToString()
            model = models[f"{directory.name}, {precision}"] = OnnxLanguageModel(content, threads=1)
            found = evaluate(model.token_losses, text, length, batch_size=8, progress=True)
            figure = {"model": directory.name, "precision": precision, "parameters": parameter_count(checkpoint.config)}
            figures.append({**figure, "MB": len(content) / 1e6, "perplexity": found.perplexity})
            print(figures[-1], flush=True)
    seconds, _ = time_in_turns(
        {key: functools.partial(decode, model) for key, model in models.items()}, arguments.rounds
    )
    rows = [("model", "parameters", "precision", "MB", "perplexity", "more than float32", "tokens/s")]
    for figure in figures:
        own = seconds[f"{figure['model']}, {figure['precision']}"]
        figure["tokens/s"] = statistics.median((NEW_TOKENS - 1) / each for each in own)
        whole = next(f["perplexity"] for f in figures if f["model"] == figure["model"] and f["precision"] == "float32")
        figure["more"] = figure["perplexity"] / whole - 1
        numbers = (
            f"{figure['MB']:.2f}",
            f"{figure['perplexity']:.3f}",
            f"{figure['more']:.2%}",
            f"{figure['tokens/s']:,.0f}",
        )
        rows.append((figure["model"], f"{figure['parameters']:,}", figure["precision"], *numbers))
    print(markdown_table(rows))
    arguments.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
