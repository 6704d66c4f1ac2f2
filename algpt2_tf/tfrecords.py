"""Write packed training blocks as TFRecord shards: `python -m algpt2_tf.tfrecords --help`."""

from algpt2.cli import Parser, positive_int, run_command
from algpt2.data.arguments import add_dataset_arguments
from algpt2.data.corpus import PYTHON_DOCS


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(
        prog="python -m algpt2_tf.tfrecords",
        description="Tokenize and pack a text once, and write its blocks as TFRecord shards.",
    )
    text = parser.add_argument_group("text")
    add_dataset_arguments(text, f"{PYTHON_DOCS} (built in), a file, a folder, a quoted glob, or a hub data set")
    text.add_argument("--validation", metavar="FILE", help="held-out text (default: split off as in training)")
    blocks = parser.add_argument_group("blocks")
    blocks.add_argument("--tokenizer", required=True, metavar="DIR", help="a directory with tokenizer.json")
    blocks.add_argument("--length", required=True, type=positive_int, metavar="N", help="tokens in a block")
    blocks.add_argument("--packing", choices=("stream", "line"), default="stream", help="what becomes a block")
    blocks.add_argument(
        "--eval-protocol", choices=("stream", "line"), default="stream", help="how the held-out text is cut"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--shards", type=positive_int, default=1, metavar="N", help="files to spread the blocks over")
    output.add_argument("--output-dir", required=True, metavar="DIR", help="a local directory or gs://bucket/folder")
    return parser


def main(argv=None):
    run_command(build_parser(), "algpt2_tf.tfrecord_blocks.run", argv)


if __name__ == "__main__":
    main()
