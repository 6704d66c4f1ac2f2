"""The PyTorch model of any checkpoint: of either framework, in the names of any system."""

from pathlib import Path

from algpt2 import ALGPT2Config
from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.checkpoints.config_file import parse_config, read_config, read_stored_config
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.checkpoints.formats import find_weights, read_weights, weight_files
from algpt2.checkpoints.formats.pytorch import check_archive
from algpt2.checkpoints.generation_config import check_generation_config
from algpt2.checkpoints.weight_maps import find_dialect, is_wrapped
from algpt2.checkpoints.weight_maps.own import PYTORCH
from algpt2.errors import InputError, LoadError
from algpt2_pt.cpu_kernels import use_fast_kernels
from algpt2_pt.modeling_algpt2 import (
    ALGPT2ForQuestionAnswering,
    ALGPT2ForSequenceClassification,
    ALGPT2ForTokenClassification,
    without_projection,
)
from algpt2_pt.weights import to_torch

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# The models that read hidden states instead of giving logits of tokens.
HEADS = (ALGPT2ForSequenceClassification, ALGPT2ForTokenClassification, ALGPT2ForQuestionAnswering)
# A field of the configuration, but as an argument transformers takes it for the dtype of the weights.
NOT_OVERRIDES = ("dtype",)


class AnyCheckpoint:
    """Mixin of a model: reads checkpoints of either framework, by the names of any system."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """A model with the weights of a checkpoint, as `transformers.PreTrainedModel.from_pretrained`.

        Besides ALGPT2's own checkpoints it reads those of `algpt2.checkpoints.weight_maps.DIALECTS`, Keras's weights
        among them. On a CPU it has fast kernels; `algpt2_pt.cpu_kernels.use_plain_kernels` takes them off.

        Args:
            pretrained_model_name_or_path: str or path. A directory, or the id of a hub repository.
            *args, config, **kwargs: as in transformers.

        Raises:
            algpt2.errors.InputError: if a checkpoint in another dialect cannot be read.

        Example:
            >>> model = ALGPT2LMHeadModel.from_pretrained("gpt2")  # doctest: +SKIP
        """
        name = pretrained_model_name_or_path
        if name is None:
            return super().from_pretrained(None, *args, config=config, **kwargs)
        if kwargs.get("gguf_file"):
            raise InputError(
                f"{name}: ALGPT2 reads no GGUF; give the checkpoint that `python -m convert to-pt` makes of the file"
            )
        hub_options = {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        directory = find_checkpoint(name, kwargs.get("subfolder") or "", **hub_options)
        config = config if config is None else _as_config(config)
        if _transformers_loads(directory, config, kwargs.get("variant")):
            check_generation_config(directory)
            try:
                loaded = super().from_pretrained(name, *args, config=config, **kwargs)
            except (ImportError, RuntimeError) as error:
                # A package that a quantization takes, or weights that do not fit.
                raise LoadError(f"{name}: transformers cannot load it ({error})") from error
            _as_made(loaded)
            return loaded
        kwargs = {key: value for key, value in kwargs.items() if key not in (*HUB_OPTIONS, "subfolder")}
        return cls.from_checkpoint(open_checkpoint(directory, config=config), *args, config=config, **kwargs)

    @classmethod
    def from_checkpoint(cls, checkpoint, *args, config=None, **kwargs):
        """A model with the weights of an open checkpoint, which are read once and checked.

        Args:
            checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
            config: `ALGPT2Config`, of the same weights; by default that of the checkpoint.
            *args, **kwargs: as in `from_pretrained`, but for what is of the hub.

        Raises:
            algpt2.errors.InputError: if the weights do not fit or are not finite, or another file is damaged.
        """
        if config is None:
            fields = vars(ALGPT2Config()).keys() - set(NOT_OVERRIDES)
            config = checkpoint.model_config(**{key: kwargs.pop(key) for key in list(kwargs) if key in fields})
        weights = checkpoint.read_weights(config)
        generation_config = checkpoint.generation_config(config)
        state_dict = {name: to_torch(array) for name, array in weights.items()}
        loaded = super().from_pretrained(None, *args, config=config, state_dict=state_dict, **kwargs)
        model = _as_made(loaded)
        if model.can_generate():
            model.generation_config = generation_config
        return loaded


def _as_made(loaded):
    """The model that `from_pretrained` gives, with the fast kernels and the parameters that it trains if made new."""
    # With `output_loading_info` the model comes first.
    model = use_fast_kernels(loaded[0] if isinstance(loaded, tuple) else loaded)
    if isinstance(model, HEADS):
        # Whatever transformers loads has gradients.
        without_projection(model.transformer)
    return model


def _as_config(config):
    """What `config` of `from_pretrained` means: an `ALGPT2Config`, that of another system, or the path of one."""
    if isinstance(config, ALGPT2Config):
        return config
    if isinstance(config, str | Path):
        return read_config(config)
    return parse_config({"model_type": config.model_type, **config.to_dict()}, source=type(config).__name__)


def _transformers_loads(directory, config, variant):
    """Whether a checkpoint has ALGPT2's own names in PyTorch's files, which transformers itself loads."""
    path = directory / CONFIG_FILE
    stored = config.to_dict() if config is not None and not path.exists() else read_stored_config(path)
    is_own = stored.get("model_type") in (None, ALGPT2Config.model_type)
    parse_config({"model_type": ALGPT2Config.model_type, **stored}, source=path)
    if variant:
        # Only ALGPT2 itself writes a schedule; others with its model_type have tensors of other names.
        if is_own and stored.get("layer_schedule"):
            return True
        raise InputError(f"{directory}: variant={variant!r} is for ALGPT2's own checkpoints, which this is not")
    found = find_weights(directory)
    if not is_own or not found:
        return is_own
    kind, path = found[0]
    tensors = read_weights(kind, path)
    if find_dialect(kind.naming, stored, tensors)[0] is not PYTORCH or is_wrapped(tensors):
        return False
    for file in weight_files(kind, path):
        # transformers does not.
        check_archive(file)
    return True
