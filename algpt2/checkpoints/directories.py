"""Checkpoint directories: finding them, here or on the Hugging Face hub, and what may be in them."""

import contextlib
import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from algpt2.checkpoints import CONFIG_FILE, MODEL_CARD_FILE
from algpt2.checkpoints.formats import FORMATS
from algpt2.checkpoints.generation_config import GENERATION_FILE
from algpt2.configuration import CODE_FILES
from algpt2.data.tokenizer import TOKENIZER_FILES
from algpt2.errors import InputError
from algpt2.files.atomic import require_whole

# Of PEFT.
ADAPTER_FILE = "adapter_config.json"
# What a checkpoint in any dialect may have besides its weights: KerasHub's presets have the last three.
METADATA_FILES = (
    *(CONFIG_FILE, GENERATION_FILE, MODEL_CARD_FILE, *CODE_FILES, *TOKENIZER_FILES),
    *("metadata.json", "task.json", "preprocessor.json"),
)
# All that a checkpoint of any system may have, as patterns.
CHECKPOINT_FILES = (*METADATA_FILES, *(pattern for kind in FORMATS for pattern in kind.patterns))


def find_checkpoint(name_or_path, subfolder="", **hub_options):
    """The local directory of a checkpoint, downloaded from the Hugging Face hub if it is not a directory.

    Args:
        name_or_path: str or path. A directory, or the id of a hub repository.
        subfolder: str. The folder in it that holds the checkpoint.
        **hub_options: `revision`, `token`, `cache_dir`, ... of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: if there is neither.
    """
    if os.path.isdir(name_or_path):
        directory = Path(name_or_path, subfolder)
        require_whole(directory)
        if (directory / ADAPTER_FILE).is_file() and not (directory / CONFIG_FILE).is_file():
            raise InputError(f"{directory}: is an adapter of PEFT; `python -m convert to-pt` merges it into its base")
        return directory
    if os.path.isfile(name_or_path):
        raise InputError(
            f"{name_or_path}: is a file; give the directory of a checkpoint (`python -m convert to-pt` makes one of a "
            "GGUF file)"
        )
    name, prefix = str(name_or_path), f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        kinds = FORMATS
        if not hub_options.get("local_files_only"):
            # Where the hub does not answer, what was downloaded before may still be there.
            with contextlib.suppress(HTTPError, OSError):
                access = {key: hub_options[key] for key in ("revision", "token") if key in hub_options}
                files = set(HfApi().list_repo_files(name, **access))
                # One of several copies of the weights is enough, since both frameworks read each of them.
                kinds = [kind for kind in FORMATS if {f"{prefix}{kind.file}", f"{prefix}{kind.index}"} & files][:1]
        weights = [pattern for kind in kinds for pattern in kind.patterns]
        patterns = [prefix + pattern for pattern in (*METADATA_FILES, *weights)]
        return Path(snapshot_download(name, allow_patterns=patterns, **hub_options), subfolder)
    except (HFValidationError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name_or_path}: no such directory, and the Hugging Face hub does not give it "
            f"({type(error).__name__}); give a directory that holds {CONFIG_FILE}"
        ) from error


def leads_out(path, directory):
    """Where a link leads that leaves a checkpoint; what is there is no part of it, and not to be passed on.

    Args:
        path: `Path` in the directory.
        directory: `Path`.

    Returns:
        `Path`, or `None` for what is in the directory, or, if that is a snapshot in the cache of the Hugging Face hub,
        among the files of its repository.
    """
    home = directory.parents[1] if directory.parent.name == "snapshots" else directory
    return None if path.resolve().is_relative_to(home.resolve()) else path.resolve()
