"""The program of evaluation, the same for both frameworks."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from algpt2.data import TFRECORDS_FILE
from algpt2.data.arguments import require_options_used, text_options
from algpt2.data.corpus import PYTHON_DOCS
from algpt2.data.packing import block_length
from algpt2.errors import InputError
from algpt2.evaluation.arguments import FIGURE_FILE
from algpt2.evaluation.perplexity import evaluate, validation_text
from algpt2.evaluation.report import check_figure, draw_depths, evaluation_table, record
from algpt2.imports.frameworks import FRAMEWORKS
from algpt2.training.recorded_run import find_run, open_newest


def run_evaluation(arguments, losses_of, packed_text=None):
    """Evaluate a checkpoint, and print what was found.

    Text, length and protocol are those of the run that the checkpoint is of, where the arguments name no others.

    Args:
        arguments: `argparse.Namespace` of `algpt2.evaluation.arguments.evaluate_parser`.
        losses_of: function from an `algpt2.checkpoints.checkpoint.Checkpoint` and a list of `ALGPT2Config`, those of
            each depth, to an iterator over the functions that `algpt2.evaluation.perplexity.evaluate` takes.
        packed_text: function from a directory of TFRecords and a protocol to the `TokenizedText` that they hold out;
            `None` for a framework that cannot read them.

    Raises:
        InputError: for anything wrong in the arguments, the checkpoint or the text.
    """
    depths = arguments.depth or [None]
    figure = arguments.figure or FIGURE_FILE
    if arguments.figure and len(depths) == 1:
        raise InputError("--figure draws perplexity over depth; give several depths, such as --depth 2,4,6")
    check_figure(figure)
    checkpoint = open_newest(arguments.checkpoint, arguments.framework)
    configs = [checkpoint.at_depth(depth) for depth in depths]
    own_depth = checkpoint.config.n_layer
    settled = arguments.dataset and arguments.length and arguments.protocol
    run = None if settled else find_run(checkpoint.directory)
    protocol = arguments.protocol or (run.arguments["eval_protocol"] if run else "stream")
    if arguments.stride and protocol != "sliding":
        raise InputError("--stride is for --protocol sliding")
    length = block_length(arguments.length or (run and run.arguments["length"]), checkpoint.config)
    text, name = _text(arguments, checkpoint, run, protocol, length, packed_text)
    context = {"checkpoint": str(arguments.checkpoint), "framework": FRAMEWORKS[arguments.framework].title}
    context["dataset"] = name
    records = []
    for config, losses in zip(configs, losses_of(checkpoint, configs), strict=True):
        result = evaluate(losses, text, length, arguments.batch_size, protocol, arguments.stride, progress=True)
        records.append(record(result, **context, depth=config.n_layer))
    if arguments.json:
        print(json.dumps(records if len(records) > 1 else records[0], allow_nan=False))
    elif len(records) > 1:
        print(f"{name}, protocol {result.name}\n\n{evaluation_table(records)}")
    else:
        print(
            f"{name}, protocol {result.name}: {result.tokens} tokens, loss {result.loss:.6f}, "
            f"perplexity {result.perplexity:.4f}, word perplexity {_shown(result.word_perplexity)}, "
            f"bits per byte {_shown(result.bits_per_byte)}"
        )
    if len(records) > 1:
        draw_depths(records, own_depth, figure)
        print(f"wrote {figure}", file=sys.stderr)


def _text(arguments, checkpoint, run, protocol, length, packed_text):
    """The tokens to evaluate on, and what messages call them."""
    by = "line" if protocol == "line" else "document"
    dataset = arguments.dataset or (run and run.arguments["dataset"]) or PYTHON_DOCS
    if packed_text and (Path(dataset) / TFRECORDS_FILE).is_file():
        return packed_text(dataset, protocol), arguments.dataset or run.text_name
    if arguments.dataset or not run:
        require_options_used(argparse.Namespace(**{**vars(arguments), "dataset": dataset}))
        return validation_text(checkpoint, dataset, length, by, text_options(arguments))[0], dataset
    # What is given beside the text of the run says how to read it.
    given = {key: value for key, value in dataclasses.asdict(text_options(arguments)).items() if value}
    run = dataclasses.replace(run, arguments={**run.arguments, **given})
    return validation_text(checkpoint, run.documents(), length, by)[0], run.text_name


def _shown(value):
    return "unknown" if value is None else f"{value:.4f}"
