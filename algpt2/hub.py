"""Upload a checkpoint or a run to the Hugging Face hub: `python -m algpt2.hub DIR REPO`."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from algpt2.checkpoints import CONFIG_FILE, MODEL_CARD_FILE
from algpt2.cli import Parser, run_command
from algpt2.errors import InputError
from algpt2.training.run_directory import ARGUMENTS_FILE, LOG_FILES

# What a run keeps for itself: its arguments, with paths of the machine; checkpoints; logs; files that begin with a dot.
LEFT_OUT = (ARGUMENTS_FILE, "checkpoint-*/*", *LOG_FILES, ".*", "*/.*")


def upload(directory, repository, private=False, revision=None):
    """Upload a directory to a hub repository, which is made if it is not there.

    In the uploaded model card the examples load the model from the repository; the card in the directory stays as it
    is.

    The token is that of `hf auth login` or of the environment variable HF_TOKEN.

    Args:
        directory: path that holds config.json; its intermediate checkpoints and logs stay behind.
        repository: str, such as `"name/model"`.
        private: bool. Whether a repository that is made is private.
        revision: str. The branch, made if it is not there; `None` means `main`.

    Returns:
        str: the address of the commit.

    Raises:
        InputError: if the directory is no checkpoint, there is no token, or the hub cannot be reached or refuses.

    Example:
        >>> upload("runs/algpt2", "me/algpt2")  # doctest: +SKIP
    """
    # It imports a framework, which the help of the command line need not wait for.
    from algpt2.checkpoints.directories import leads_out
    from algpt2.training.model_card import renamed

    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory")
    if not (directory / CONFIG_FILE).is_file():
        raise InputError(f"{directory}: holds no {CONFIG_FILE}; give the directory of a checkpoint or of a run")
    files = {p.relative_to(directory).as_posix(): p for p in sorted(directory.rglob("*")) if p.is_file()}
    files = {name: files[name] for name in filter_repo_objects(files, ignore_patterns=list(LEFT_OUT))}
    for path in files.values():
        if target := leads_out(path, directory):
            raise InputError(f"{path}: is a link to {target}; put a copy in its place, or remove it")
    require_access(repository)
    api = HfApi(library_name="algpt2")
    try:
        repository = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        content = {name: str(path) for name, path in files.items()}
        if MODEL_CARD_FILE in files:
            card = files[MODEL_CARD_FILE].read_bytes().decode("utf-8", "surrogateescape")
            content[MODEL_CARD_FILE] = renamed(card, repository).encode("utf-8", "surrogateescape")
        commit = api.create_commit(
            repository,
            [CommitOperationAdd(name, source) for name, source in content.items()],
            revision=revision,
            commit_message="Upload model",
        )
    except OfflineModeIsEnabled as error:
        raise InputError("the hub cannot be reached: HF_HUB_OFFLINE is set; unset it to upload") from error
    except HfHubHTTPError as error:
        raise InputError(_refusal(repository, error)) from error
    except HTTPError as error:
        raise InputError(f"the hub cannot be reached at {api.endpoint} ({error}); try again with a network") from error
    except (OSError, RuntimeError) as error:
        # An upload that breaks off; what is there of it is no commit.
        raise InputError(f"{directory}: not uploaded ({error}); try again") from error
    return commit.commit_url


def require_access(repository):
    """Raise an InputError unless a repository can be uploaded to, as far as can be known without asking the hub.

    Args:
        repository: str, such as `"name/model"`.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{repository}: not the name of a repository ({error})") from error
    if get_token() is None:
        raise InputError("no token for the hub; run `hf auth login`, or set HF_TOKEN to one that may write")


def _refusal(repository, error):
    status = error.response.status_code
    if status == 401:
        return f"{repository}: the hub does not accept the token (401); run `hf auth login` with a valid one"
    if status == 403:
        return f"{repository}: the hub refuses the token (403); it needs write access to this repository"
    return f"{repository}: the hub answers {status} ({error.server_message or 'without a reason'})"


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(
        prog="python -m algpt2.hub",
        description="Upload a checkpoint or a run, without its intermediate checkpoints and logs, to the hub.",
    )
    parser.add_argument("directory", metavar="DIR", help="a checkpoint or run directory")
    parser.add_argument("repository", metavar="REPO", help="the repository, such as name/model")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is not there yet")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to upload to (default: main)")
    return parser


def run(arguments):
    """Upload what the arguments, an `argparse.Namespace`, name; an InputError as of `upload`."""
    print(f"wrote {upload(arguments.directory, arguments.repository, arguments.private, arguments.revision)}")


def main(argv=None):
    run_command(build_parser(), "algpt2.hub.run", argv)


if __name__ == "__main__":
    main()
