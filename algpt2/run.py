"""Look at runs: `python -m algpt2.run compare RUN RUN ...`."""

from algpt2.cli import Parser, run_command


def add_arguments(parser):
    """Add the arguments of the comparison to a command line.

    Args:
        parser: `argparse.ArgumentParser`.
    """
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, of either framework")
    parser.add_argument(
        "--output-dir",
        default="runs/comparison",
        metavar="DIR",
        help="where comparison.md, comparison.csv and comparison.png go",
    )


def main(argv=None):
    parser = Parser(prog="python -m algpt2.run", description="Look at runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("compare", help="one figure and one table of runs")
    add_arguments(command)
    run_command(parser, "algpt2.training.compare.compare", argv)


if __name__ == "__main__":
    main()
