"""`python -m algpt2.demo`: checkpoints in a browser."""

from algpt2.cli import run_command
from algpt2.demo.arguments import build_parser


def main(argv=None):
    run_command(build_parser(), "algpt2.demo.command.run", argv)


if __name__ == "__main__":
    main()
