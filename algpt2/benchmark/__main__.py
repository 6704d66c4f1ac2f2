"""`python -m algpt2.benchmark`: a checkpoint in each runtime and precision."""

from algpt2.benchmark.arguments import build_parser
from algpt2.cli import run_command


def main(argv=None):
    run_command(build_parser(), "algpt2.benchmark.command.run", argv)


if __name__ == "__main__":
    main()
