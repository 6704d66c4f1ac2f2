"""Write packed training blocks as TFRecord shards: `python -m algpt2_tf.tfrecords --help`."""

import argparse

from algpt2.cli import HelpFormatter, positive_int, run_command
from algpt2.data.corpus import PYTHON_DOCS, add_dataset_arguments


def build_parser():
    """The command line.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m algpt2_tf.tfrecords",
        description="Tokenize and pack a text once, and write its blocks as TFRecord shards.",
        formatter_class=HelpFormatter,
    )
    add_dataset_arguments(parser, f"{PYTHON_DOCS} (built in), a file, a folder, a quoted glob, or a hub data set")
    parser.add_argument("--validation", metavar="FILE", help="held-out text (default: split off as in training)")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="a directory with tokenizer.json")
    parser.add_argument("--length", required=True, type=positive_int, metavar="N", help="tokens in a block")
    parser.add_argument("--packing", choices=("stream", "line"), default="stream", help="what becomes a block")
    parser.add_argument(
        "--eval-protocol", choices=("stream", "line"), default="stream", help="how the held-out text is cut"
    )
    parser.add_argument("--shards", type=positive_int, default=1, metavar="N", help="files to spread the blocks over")
    parser.add_argument("--output-dir", required=True, metavar="DIR", help="a local directory or gs://bucket/folder")
    return parser


def main(argv=None):
    run_command(build_parser(), "algpt2_tf.tfrecord_blocks.run", argv)


if __name__ == "__main__":
    main()
