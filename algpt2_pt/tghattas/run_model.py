"""Training and evaluation by the command line of tGhattas/ALGPT2, in terms of this project's own."""

import importlib.util
import os
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.data.encoding import TOKENIZER_FILE
from algpt2.data.tokenizer import fast_tokenizer
from algpt2.errors import InputError
from algpt2_pt import evaluate, train
from algpt2_pt.devices import process_count
from algpt2_pt.run_model import ALGPT2, GPT2, MINIMIZED_BLOCKS, MINIMIZED_STEPS, SMALL_EMBEDDING
from algpt2_pt.tghattas.train_tokenizer import file_name, tokenizer_directory

EVALUATION_BATCH = 64


def run_directory(options):
    """Where the run of these options is kept.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.

    Returns:
        str, such as `"save_ALGPT2LMHeadModel-default_depth-wikitext-2-v1_factorized_embeds"`.
    """
    depth = options.depth or "default_depth"
    embedding = "factorized_embeds" if _is_factorized(options) else "not_factorized_embeds"
    return f"save_{options.model_class_name}-{depth}-{file_name(options.dataset_path)}_{embedding}"


def train_arguments(options, tokenizer, checkpoint=None, devices=1, report_to="none"):
    """What `python -m algpt2_pt.train` is to be called with.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.
        tokenizer: str. The directory of the tokenizer.
        checkpoint: str. The directory of the checkpoint to start from, or `None`.
        devices: int. The devices, each of which gets a batch.
        report_to: str. As `--report-to`.

    Returns:
        list of str.
    """
    if checkpoint is not None:
        model = ["--init-from", checkpoint]
    elif options.model_class_name == GPT2:
        model = ["--preset", "gpt2", "--sharing", "none"]
    else:
        size = SMALL_EMBEDDING if _is_factorized(options) else 0
        model = ["--preset", "algpt2", "--sharing", "full", "--embedding-size", str(size)]
    interval = str(MINIMIZED_STEPS if options.minimize_dataset else options.save_steps)
    return [
        *model,
        *(["--depth", str(options.depth)] if options.depth else []),
        *("--dataset", options.dataset_path, "--tokenizer", tokenizer, "--length", str(options.sequence_max_length)),
        *("--packing", "line", "--eval-protocol", "line"),
        *(["--max-train-blocks", str(MINIMIZED_BLOCKS)] if options.minimize_dataset else []),
        *("--epochs", str(options.num_of_epochs), "--batch-size", str(options.batch_size * devices)),
        *("--optimizer", "adamw", "--learning-rate", str(options.learning_rate), "--weight-decay", "0.01"),
        *("--lr-schedule", "linear", "--warmup-steps", "0", "--max-grad-norm", "1.0"),
        *("--device", "cpu" if options.device == "cpu" else "auto"),
        *("--logging-steps", "100", "--eval-steps", interval, "--save-steps", interval, "--report-to", report_to),
        *(["--push-to-hub", options.hf_hub_path] if options.hf_hub_path and not options.pretrained else []),
        *("--output-dir", run_directory(options), "--resume" if options.load_checkpoint else "--overwrite"),
    ]


def evaluate_arguments(options, checkpoint):
    """What `python -m algpt2_pt.evaluate` is to be called with.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.
        checkpoint: str. A directory, or the id of a hub repository.

    Returns:
        list of str.
    """
    has_depth = options.eval_depth and options.model_class_name == ALGPT2
    return [
        *(checkpoint, "--dataset", options.dataset_path, "--protocol", "line"),
        *("--length", str(options.sequence_max_length), "--batch-size", str(EVALUATION_BATCH)),
        *(["--depth", str(options.eval_depth)] if has_depth else []),
    ]


def notes(options):
    """A line for every flag that does something else here, or nothing.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.

    Returns:
        list of str.
    """
    lines = {
        f"{run_directory(options)}: the run that is there is replaced; --load_checkpoint goes on with it": (
            not options.load_checkpoint and not options.eval_only and Path(run_directory(options)).exists()
        ),
        "--load_tokenized_datasets: tokenized text is cached and found again without being asked": (
            options.load_tokenized_datasets
        ),
        "--save_tokenized_datasets: tokenized text is always cached": options.save_tokenized_datasets,
        f"--factorized_embeds: {GPT2} has no factorized embedding; left out": (
            options.factorized_embeds and options.model_class_name == GPT2
        ),
        f"--eval_depth: {GPT2} shares no block to apply more or less often; left out": (
            options.eval_depth and options.model_class_name == GPT2
        ),
        f"--hf_hub_path: the finished run will be uploaded to {options.hf_hub_path}": (
            options.hf_hub_path and not options.eval_only and not options.pretrained
        ),
    }
    return [line for line, applies in lines.items() if applies]


def find_tokenizer(options):
    """The directory of the tokenizer that the options name.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.

    Returns:
        str.

    Raises:
        InputError: if there is none.
    """
    if not options.tokenizer_path:
        return _pretrained_tokenizer(options.model_name)
    path = options.tokenizer_path
    directory = tokenizer_directory(path)
    for place in (path, directory):
        if (Path(place) / TOKENIZER_FILE).is_file():
            return place
    # What tGhattas/ALGPT2's own train_tokenizer.py wrote.
    for file in (Path(path), Path(f"{directory}_tokenizer.json")):
        if file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the tokenizers library raises bare Exceptions
                raise InputError(f"{file}: not readable as a tokenizer ({error})") from error
            fast_tokenizer(tokenizer).save_pretrained(directory := tokenizer_directory(file.stem))
            return directory
    raise InputError(
        f"--tokenizer_path {path}: no tokenizer there or in {directory}; "
        f"train one: python -m algpt2_pt.train_tokenizer --dataset_path {path}"
    )


def find_pretrained(options):
    """The directory of the checkpoint that `--pretrained` starts from.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.

    Returns:
        str.

    Raises:
        InputError: if there is none, or its blocks are not those of the model.
    """
    name = options.hf_hub_path or options.model_name
    directory = find_checkpoint(name)
    config = read_config(directory)
    if options.model_class_name == ALGPT2 and config.n_block > 1:
        raise InputError(
            f"{name}: has {config.n_block} blocks, and {ALGPT2} shares one; name an ALGPT2 checkpoint with "
            f"--model_name, or take --model_class_name {GPT2}"
        )
    return str(directory)


def _is_factorized(options):
    return options.factorized_embeds and options.model_class_name == ALGPT2


def _pretrained_tokenizer(name):
    directory = name if (Path(name) / TOKENIZER_FILE).is_file() else tokenizer_directory(name)
    if not (Path(directory) / TOKENIZER_FILE).is_file():
        try:
            AutoTokenizer.from_pretrained(name).save_pretrained(directory)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--model_name {name}: its tokenizer cannot be loaded from the Hugging Face hub; "
                "train one with python -m algpt2_pt.train_tokenizer and name it with --tokenizer_path"
            ) from error
    return directory


def _reporter():
    """`wandb` where it is installed and has an account or is offline, as the Trainer that tGhattas/ALGPT2 uses."""
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled" or importlib.util.find_spec("wandb") is None:
        return "none"
    import wandb

    return "wandb" if mode == "offline" or wandb.login(prompt=False) else "none"


def run(options):
    """Train or evaluate.

    Args:
        options: `argparse.Namespace` of `algpt2_pt.run_model.parser`.

    Raises:
        InputError: if there is no tokenizer, or nothing to start from.
    """
    for line in notes(options):
        print(line, flush=True)
    directory = run_directory(options)
    if options.eval_only:
        evaluate.main(evaluate_arguments(options, options.hf_hub_path or directory))
        return
    tokenizer = find_tokenizer(options)
    checkpoint = find_pretrained(options) if options.pretrained else None
    train.main(train_arguments(options, tokenizer, checkpoint, process_count(options), _reporter()))
    # Of several processes the first is enough to evaluate.
    if options.eval_depth and options.model_class_name == ALGPT2 and os.environ.get("RANK", "0") == "0":
        evaluate.main(evaluate_arguments(options, directory))
