"""What is settled before a run starts: its data, its configuration and its directory."""

import importlib.util
import math
import os
from pathlib import Path

from algpt2.checkpoints.checkpoint import opened
from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.formats import find_weights
from algpt2.configuration import ALGPT2Config
from algpt2.data.arguments import require_options_used, text_options
from algpt2.data.corpus import read_corpus
from algpt2.data.encoding import vocabulary_size
from algpt2.data.packing import TrainingOrder, block_length, pack_corpus
from algpt2.data.tokenizer import SPECIAL_TOKEN_FIELDS, fit_tokenizer, require_tokenizer, special_token_ids
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError
from algpt2.hub import require_access
from algpt2.training.classification import ClassificationRun, check_arguments, read_labelled
from algpt2.training.distillation import of_teacher, open_teacher, read_teacher
from algpt2.training.given_arguments import settle_text
from algpt2.training.model_config import model_config
from algpt2.training.optimization import default_learning_rate, final_decay_steps
from algpt2.training.random_depth import RandomDepth
from algpt2.training.run import Run
from algpt2.training.run_directory import new_run_directory, require_free, run_sources


def prepare_run(arguments, is_first=True, data=None):
    """Read the data, train or load the tokenizer, and settle the configuration, before a framework is started.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
        is_first: bool. Whether this process makes the run directory; the others find it there.
        data: tuple of tokenizer, `Blocks` and validation `TokenizedText` that were packed before; `None` packs
            `--dataset`.

    Returns:
        `Run`; its directory holds the tokenizer, the configuration and the arguments.

    Raises:
        InputError: for anything wrong in the arguments or the data.
    """
    directory = Path(arguments.output_dir)
    # A process that is not the first, and a resumed run, take from the run directory what the first one settled.
    starts = is_first and not arguments.resume
    if arguments.load_best and not arguments.save_steps:
        arguments.save_steps, arguments.save_total_limit = arguments.eval_steps, arguments.save_total_limit or 1
    _check_surroundings(arguments, directory, starts)
    taught_by, source = open_teacher(arguments), None
    if arguments.init_from and not arguments.resume:
        source = opened(arguments.init_from, arguments.framework)
    config = model_config(arguments, source) if starts else read_config(directory)
    if arguments.learning_rate is None:
        arguments.learning_rate = default_learning_rate(config, bool(arguments.init_from))
    length = block_length(data[1].length if data else arguments.length, config)
    depths = RandomDepth(config, arguments.random_depth, arguments.seed) if arguments.random_depth else None
    classifies, names = arguments.task == "classify", None
    if classifies or not data:
        tokenizer = _given_tokenizer(arguments, source, taught_by) if starts else require_tokenizer(directory)
        if classifies:
            names, *texts = read_labelled(arguments, config, tokenizer)
            data = tokenizer, *texts
        else:
            data = _read_data(arguments, config, length, tokenizer)
    tokenizer, blocks, validation = data
    if starts:
        config = _with_tokens_of(tokenizer, config, source, taught_by)
        if classifies:
            # Other classes start a new head.
            source = source if [*config.id2label.values()] == names else source.without_heads()
            config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    fit_tokenizer(tokenizer, config, (starts and (arguments.tokenizer or arguments.init_from)) or directory)
    # Before a directory is made or replaced.
    initial_weights = source.read_weights(config) if source else None
    teacher = taught_by and read_teacher(taught_by, arguments, config, tokenizer, length)
    steps_before = arguments.steps
    block_count, decay_steps = _settle_length(arguments, blocks)
    if starts:
        with new_run_directory(directory, arguments, config, tokenizer):
            pass
    run = (ClassificationRun if classifies else Run)(
        arguments=arguments,
        directory=directory,
        config=config,
        tokenizer=tokenizer,
        blocks=blocks,
        order=TrainingOrder(block_count, arguments.steps * arguments.batch_size, arguments.seed),
        validation=validation,
        steps=arguments.steps,
        warmup_steps=arguments.warmup_steps,
        decay_steps=decay_steps,
        is_first=is_first,
        initial_weights=initial_weights,
        teacher=teacher,
        goes_on=isinstance(arguments.resume, str) or (arguments.resume and steps_before not in (None, arguments.steps)),
        depths=depths,
    )
    if run.goes_on:
        _require_steps_left(run)
    return run


def _check_surroundings(arguments, directory, starts):
    """Raise an InputError for what a run cannot have, before anything is read."""
    if starts:
        hint = "give another --output-dir, --resume to go on, or --overwrite to replace it"
        require_free(directory, "--output-dir", run_sources(arguments), arguments.overwrite, hint)
    _require_reporter(arguments.report_to)
    if arguments.push_to_hub:
        require_access(arguments.push_to_hub)
    if arguments.task == "classify":
        check_arguments(arguments)
    if arguments.sop and arguments.packing == "line":
        raise InputError("--sop swaps the halves of blocks, which lines do not have; leave out --packing line")


def _with_tokens_of(tokenizer, config, source, teacher):
    """A configuration with the vocabulary and the special tokens of a tokenizer."""
    tokens = special_token_ids(tokenizer)
    if not source:
        # A teacher may have more tokens than its tokenizer.
        size = teacher.config.vocab_size if teacher else vocabulary_size(tokenizer)
        tokens = {**dict.fromkeys(SPECIAL_TOKEN_FIELDS), **tokens, "vocab_size": size}
    return ALGPT2Config.from_dict(config.to_dict(), **tokens)


def _settle_length(arguments, blocks):
    """Have the arguments say the steps of a run, for whoever reads its record.

    Returns:
        tuple of int: the blocks that are trained on, and the steps of the final decay.
    """
    block_count = min(len(blocks), arguments.max_train_blocks or math.inf)
    if arguments.batch_size > block_count:
        raise InputError(f"--batch-size {arguments.batch_size} is more than the text's {block_count} blocks")
    steps = arguments.max_steps or max(1, round(arguments.epochs * block_count / arguments.batch_size))
    if arguments.warmup_steps is None:
        ratio = arguments.warmup_ratio
        arguments.warmup_steps = steps // 10 if ratio is None else math.ceil(steps * ratio)
    arguments.length, arguments.steps = blocks.length, steps
    return block_count, final_decay_steps(arguments.lr_schedule, arguments.warmup_steps, steps, arguments.decay_steps)


def check_batch(arguments, devices):
    """Raise an InputError unless the batch of a step can be split.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
        devices: int. The devices that share a batch.
    """
    if arguments.batch_size % (devices * arguments.gradient_accumulation):
        raise InputError(
            f"--batch-size {arguments.batch_size} must be divisible by {devices} device{'s' * (devices > 1)} times "
            f"--gradient-accumulation {arguments.gradient_accumulation}"
        )


def _require_steps_left(run):
    if not run.step and find_weights(run.directory):
        raise InputError(
            f"{run.directory}: the run is finished and kept no checkpoint to go on from (--save-steps); "
            f"--init-from {run.directory} starts a new one with its weights"
        )
    if run.step > run.steps:
        raise InputError(
            f"{run.checkpoints.path(run.step)} has made {run.step} steps already, more than {run.steps}; give more "
            "--max-steps, or an earlier checkpoint to --resume"
        )


def _given_tokenizer(arguments, source, teacher):
    """The tokenizer that the arguments name; `None` if one is to be trained."""
    if arguments.tokenizer:
        return require_tokenizer(arguments.tokenizer)
    if source:
        return source.require_tokenizer()
    # Not `teacher.require_tokenizer`, whose tokenizer says how many positions the teacher has.
    with of_teacher(arguments):
        return teacher and require_tokenizer(teacher.directory)


def _read_data(arguments, config, length, tokenizer):
    if not arguments.resume:
        require_options_used(arguments)
    options = text_options(arguments)
    corpus = read_corpus(arguments.dataset, arguments.validation, options)
    text = f"{corpus.train.fingerprint()} {corpus.validation.fingerprint()}"
    settle_text(arguments, text)
    if tokenizer is None:
        print("training the tokenizer", flush=True)
        tokenizer = train_tokenizer(corpus.train, arguments.vocab_size or config.vocab_size)
    return tokenizer, *pack_corpus(corpus, tokenizer, length, arguments.packing, arguments.eval_protocol)


def _require_reporter(name):
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(f"--report-to {name}: not installed; pip install {name}")
    if name == "wandb":
        import wandb

        if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(prompt=False):
            raise InputError("--report-to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")
        # Both frameworks report to the same project, unless the user names another.
        os.environ.setdefault("WANDB_PROJECT", "algpt2")
