"""The command line of tGhattas/ALGPT2: `python -m algpt2_pt.run_model --help`."""

from algpt2.cli import Parser, positive_float, positive_int, run_command

PROGRAM = "python -m algpt2_pt.run_model"
ALGPT2, GPT2 = "ALGPT2LMHeadModel", "GPT2LMHeadModel"
SMALL_EMBEDDING = 128
MINIMIZED_BLOCKS, MINIMIZED_STEPS = 100, 10


def parser():
    """The command line, with the flags and the defaults of tGhattas/ALGPT2."""
    result = Parser(
        takes_empty=True,
        prog=PROGRAM,
        description="Train or evaluate with the flags of tGhattas/ALGPT2's run_model.py, which become those of "
        "algpt2_pt.train and algpt2_pt.evaluate.",
        usage="%(prog)s --model_class_name NAME [arguments]",
    )
    add = result.add_argument_group("model").add_argument
    add("--model_class_name", required=True, choices=(ALGPT2, GPT2), help="shared blocks, or GPT-2's own")
    add("--model_name", default="gpt2", help="whose tokenizer to use without --tokenizer_path; what --pretrained loads")
    add("--pretrained", action="store_true", help="start from the weights of --model_name (or --hf_hub_path)")
    add("--depth", type=positive_int, help="layers (default: 12)")
    add("--factorized_embeds", action="store_true", help=f"an embedding of width {SMALL_EMBEDDING}")
    add("--hf_hub_path", metavar="REPO", help="upload there; with --eval_only or --pretrained, load from there")
    add = result.add_argument_group("data").add_argument
    add("--dataset_path", default="wikitext-103-raw-v1", help="a data set of the hub, or local text")
    add("--minimize_dataset", action="store_true", help=f"train on {MINIMIZED_BLOCKS} lines only, to try things out")
    add("--sequence_max_length", type=positive_int, default=512, help="tokens of a line; longer ones are cut")
    add("--tokenizer_path", default="", help="a directory, or the --dataset_path that a tokenizer was trained on")
    for flag in ("--load_tokenized_datasets", "--save_tokenized_datasets"):
        add(flag, nargs="?", const="True", metavar="BOOL", help="no effect: tokenized text is always cached")
    add = result.add_argument_group("training").add_argument
    add("--batch_size", type=positive_int, default=32, help="lines in a step, on each device")
    add("--num_of_epochs", type=positive_float, default=1.0, help="passes over the data")
    add("--load_checkpoint", action="store_true", help="go on with the run that these flags started")
    add("--learning_rate", type=positive_float, default=1e-5, help="at the start; it falls to 0")
    add("--device", choices=("gpu", "cpu"), default="gpu", help="gpu takes the CPU where there is none")
    add("--save_steps", type=positive_int, default=10000, help="steps between checkpoints, and between evaluations")
    add = result.add_argument_group("evaluation").add_argument
    add("--eval_depth", type=positive_int, help="depths to evaluate at, after training or with --eval_only")
    add("--eval_only", action="store_true", help="evaluate the run that these flags trained, or --hf_hub_path")
    return result


def main(argv=None):
    run_command(parser(), "algpt2_pt.tghattas.run_model.run", argv)


if __name__ == "__main__":
    main()
