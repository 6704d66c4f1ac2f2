"""What is settled before a run starts: its data, its configuration and its directory."""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from algpt2.arguments import text_options
from algpt2.checkpoint import find_checkpoint, read_checkpoint
from algpt2.checkpointing import PARTIAL, storage_error
from algpt2.configuration import ALGPT2Config
from algpt2.corpus import read_corpus
from algpt2.errors import InputError
from algpt2.hub import require_access
from algpt2.optimization import final_decay_steps
from algpt2.packing import Blocks, TrainingOrder, tokenize
from algpt2.run import Run
from algpt2.tokenization import SPECIAL_TOKEN_FIELDS, load_tokenizer, special_token_ids, train_tokenizer
from algpt2.train_arguments import ARGUMENTS_FILE, configuration
from algpt2.weights import check_weights


def prepare_run(arguments, is_first=True, data=None):
    """Read the data, train or load the tokenizer, and settle the configuration, before a framework is started.

    Args:
        arguments: `argparse.Namespace` of `algpt2.train_arguments.train_parser`.
        is_first: bool. Whether this process makes the run directory; the others find it there.
        data: tuple of tokenizer, `Blocks` and validation `TokenizedText` that were packed before; `None` packs
            `--dataset`.

    Returns:
        `Run`; its directory holds the tokenizer, the configuration and the arguments.

    Raises:
        InputError: for anything wrong in the arguments or the data.
    """
    directory = Path(arguments.output_dir)
    resumes = arguments.resume and (directory / ARGUMENTS_FILE).is_file()
    if is_first and not resumes:
        hint = "give another --output-dir, --resume to go on, or --overwrite to replace it"
        require_free(directory, "--output-dir", run_sources(arguments), arguments.overwrite, hint)
    _require_reporter(arguments.report_to)
    config = configuration(arguments)
    if arguments.push_to_hub:
        require_access(arguments.push_to_hub)
    length = block_length(data[1].length if data else arguments.length, config)
    if arguments.sop and arguments.packing == "line":
        raise InputError("--sop swaps the halves of blocks, which lines do not have; leave out --packing line")
    # A process that is not the first, and a resumed run, use the tokenizer that the run has.
    tokenizer, training_blocks, validation = data or _read_data(
        arguments, config, length, directory if resumes or not is_first else None
    )
    tokens = special_token_ids(tokenizer)
    if not arguments.init_from:
        tokens = {**dict.fromkeys(SPECIAL_TOKEN_FIELDS), **tokens, "vocab_size": len(tokenizer)}
    config = ALGPT2Config.from_dict(config.to_dict(), **tokens)
    if arguments.init_from and not resumes:
        _require_weights(arguments, config)

    block_count = min(len(training_blocks), arguments.max_train_blocks or math.inf)
    if arguments.batch_size > block_count:
        raise InputError(f"--batch-size {arguments.batch_size} is more than the text's {block_count} blocks")
    steps = arguments.max_steps or max(1, round(arguments.epochs * block_count / arguments.batch_size))
    warmup_steps = steps // 10 if arguments.warmup_steps is None else arguments.warmup_steps
    decay_steps = final_decay_steps(arguments.lr_schedule, warmup_steps, steps, arguments.decay_steps)

    # What the run has, for whoever reads its record.
    arguments.length, arguments.steps, arguments.warmup_steps = training_blocks.length, steps, warmup_steps
    if is_first:
        _remove_leftovers(directory)
    if is_first and not resumes:
        with new_run_directory(directory, arguments, config, tokenizer):
            pass
    order = TrainingOrder(block_count, steps * arguments.batch_size, arguments.seed)
    return Run(
        *(arguments, directory, config, tokenizer, training_blocks, order, validation),
        *(steps, warmup_steps, decay_steps, is_first),
    )


def block_length(length, config):
    """The tokens of a block.

    Args:
        length: int, as `--length`; `None` means the configuration's `n_positions`.
        config: `ALGPT2Config`.

    Returns:
        int.

    Raises:
        InputError: if a block has nothing to predict, or does not fit the model.
    """
    length = length or config.n_positions
    if not 2 <= length <= config.n_positions:
        raise InputError(f"--length {length} must be at least 2 and at most n_positions, {config.n_positions}")
    return length


def check_batch(arguments, devices):
    """Raise an InputError unless the batch of a step can be split.

    Args:
        arguments: `argparse.Namespace` of `algpt2.train_arguments.train_parser`.
        devices: int. The devices that share a batch.
    """
    if arguments.batch_size % (devices * arguments.gradient_accumulation):
        raise InputError(
            f"--batch-size {arguments.batch_size} must be divisible by {devices} devices times "
            f"--gradient-accumulation {arguments.gradient_accumulation}"
        )


def _require_weights(arguments, config):
    # Before a directory is made or replaced.
    directory = find_checkpoint(arguments.init_from)
    check_weights(config, read_checkpoint(directory, arguments.framework)[1], source=directory)


def _read_data(arguments, config, length, directory):
    options = text_options(arguments)
    corpus = read_corpus(arguments.dataset, arguments.validation, options)
    text = f"{corpus.train.fingerprint()} {corpus.validation.fingerprint()}"
    if arguments.text not in (None, text):
        raise InputError("the text of --dataset or --validation is not what it was when the run began; start a new run")
    arguments.text = text
    source = directory or arguments.tokenizer or (arguments.init_from and find_checkpoint(arguments.init_from))
    if source:
        tokenizer = load_tokenizer(source)
        if tokenizer.eos_token_id is None:
            raise InputError(f"{source}: the tokenizer has no eos_token to end documents with")
        if arguments.init_from and len(tokenizer) > config.vocab_size:
            raise InputError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}")
    else:
        print("training the tokenizer", flush=True)
        tokenizer = train_tokenizer(corpus.train, arguments.vocab_size or config.vocab_size)
    return tokenizer, *pack_corpus(corpus, tokenizer, length, arguments.packing, arguments.eval_protocol)


def pack_corpus(corpus, tokenizer, length, packing="stream", eval_protocol="stream"):
    """The tokens of a corpus as training and evaluation take them.

    Args:
        corpus: `algpt2.corpus.Corpus`.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        length: int. The tokens of a block.
        packing, eval_protocol: str, `"stream"` or `"line"`.

    Returns:
        tuple of `Blocks` and `TokenizedText`.

    Raises:
        InputError: if either text is too short.
    """
    by = {"stream": "document", "line": "line"}
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    training = tokenize(corpus.train, tokenizer, by=by[packing])
    validation = tokenize(corpus.validation, tokenizer, by=by[eval_protocol])
    if len(validation.tokens) < 2:
        raise InputError("the validation text has no token to predict; give more text")
    return Blocks(training, length, packing, padding), validation


def _require_reporter(name):
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(f"--report-to {name}: not installed; pip install {name}")
    if name == "wandb":
        import wandb

        if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(prompt=False):
            raise InputError("--report-to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")
        # Both frameworks report to the same project, unless the user names another.
        os.environ.setdefault("WANDB_PROJECT", "algpt2")


def run_sources(arguments):
    """What a run reads, as `require_free` takes it.

    Args:
        arguments: `argparse.Namespace` of `algpt2.train_arguments.train_parser`.

    Returns:
        dict of str to str or `None`.
    """
    names = ("init_from", "tokenizer", "dataset", "validation", "config")
    return {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in names}


def require_free(directory, flag, sources, overwrite, hint):
    """Raise an InputError unless a new run directory may take a place.

    Args:
        directory: `Path`.
        flag: str. The argument that names the directory.
        sources: dict of str to path or `None`. What must not be replaced, by what reads it.
        overwrite: bool. Whether a run directory that is there may be replaced.
        hint: str. What to do about one that may not.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if directory.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{directory}: is the current directory or holds it; give another {flag}")
    if not (directory / ARGUMENTS_FILE).is_file():
        raise InputError(f"{directory}: is there already and is not a run directory; give another {flag}")
    for reader, name in sources.items():
        if directory.resolve() in (source := Path(name or "").resolve(), *source.parents):
            raise InputError(f"{directory}: holds what {reader} reads; give another {flag}")
    if not overwrite:
        raise InputError(f"{directory}: is there already; {hint}")


def _remove_leftovers(directory):
    # Of a process that was killed while it wrote.
    leftovers = [directory / PARTIAL]
    for place in (directory, directory.parent):
        leftovers += place.glob(f".{directory.name}.*")
    for leftover in leftovers:
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def new_run_directory(directory, arguments, config, tokenizer):
    """A run directory to write more into, which takes its name, and the place of another, only if the block succeeds.

    Args:
        directory: `Path`.
        arguments: `argparse.Namespace` of `algpt2.train_arguments.train_parser`.
        config: `ALGPT2Config`.
        tokenizer: `transformers.PreTrainedTokenizerFast`.

    Yields:
        `Path`: the directory, elsewhere; it holds the arguments, the configuration and the tokenizer.

    Raises:
        InputError: if it cannot be written; what was there stays.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # All at once, so that a run that is cut off here can still be resumed or started anew.
        with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as temporary:
            new = Path(temporary) / directory.name
            new.mkdir()
            (new / ARGUMENTS_FILE).write_text(json.dumps(vars(arguments), indent=2) + "\n")
            config.save_pretrained(new)
            tokenizer.save_pretrained(new)
            yield new
            if directory.is_dir():
                shutil.rmtree(directory)
            os.replace(new, directory)
    except (OSError, RuntimeError, SafetensorError, InputError) as error:
        cause = storage_error(error)
        if cause is None:
            raise
        raise InputError(f"{directory}: cannot be written ({cause})") from cause
