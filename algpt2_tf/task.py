"""What the KerasHub tasks of ALGPT2 have in common: checkpoints in and out, and checks of what they are given."""

import logging

import keras
import numpy as np
import tensorflow as tf
from transformers import GenerationConfig
from transformers.utils import PushToHubMixin

from algpt2 import ALGPT2Config
from algpt2.checkpoints.checkpoint import open_checkpoint, write_checkpoint_weights
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.checkpoints.formats import KERAS, SAFETENSORS
from algpt2.files.atomic import files_replaced_in
from algpt2_tf.backbone import TFALGPT2Backbone, check_inputs
from algpt2_tf.tokenizer import TFALGPT2Tokenizer
from algpt2_tf.weights import assign_weights, canonical_weights


class TFALGPT2Task(PushToHubMixin):
    """Mixin of a KerasHub task: reads checkpoints of either framework, in the names of any system.

    Attributes:
        architecture: str. The name of the PyTorch model with the same heads, for config.json.
        preprocessor_cls: class of the preprocessor that `from_pretrained` builds.
    """

    backbone_cls = TFALGPT2Backbone

    @property
    def config(self):
        """`ALGPT2Config`: the configuration of the backbone."""
        return self.backbone.config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, dtype=None, preprocessor="auto", **kwargs):
        """A model with the weights of a checkpoint directory, of either framework and in any dialect.

        Args:
            pretrained_model_name_or_path: str or path. A directory with config.json and weights of any of
                `algpt2.checkpoints.weight_maps.DIALECTS`, or the id of a hub repository.
            dtype: str or `keras.DTypePolicy`. By default Keras's global policy.
            preprocessor: `"auto"` builds one from the tokenizer if it is there; or a preprocessor, or `None`.
            **kwargs: `revision`, `token` or `cache_dir` for the hub; `subfolder`; fields of `ALGPT2Config` to set
                otherwise.

        Raises:
            algpt2.errors.InputError: if the checkpoint cannot be read.
            TypeError: for an unknown keyword argument.

        Example:
            >>> from algpt2_tf import TFALGPT2LMHeadModel
            >>> model = TFALGPT2LMHeadModel.from_pretrained("runs/demo")  # doctest: +SKIP
            >>> model.generate("The meaning of", max_length=30)  # doctest: +SKIP
        """
        hub_options = {key: kwargs.pop(key) for key in ("revision", "token", "cache_dir") if key in kwargs}
        directory = find_checkpoint(pretrained_model_name_or_path, kwargs.pop("subfolder", ""), **hub_options)
        return cls.from_checkpoint(open_checkpoint(directory, "tensorflow"), dtype, preprocessor, **kwargs)

    @classmethod
    def from_checkpoint(cls, checkpoint, dtype=None, preprocessor="auto", **kwargs):
        """A model with the weights of an open checkpoint, which are read once and checked.

        Args:
            checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
            dtype, preprocessor: as in `from_pretrained`.
            **kwargs: fields of `ALGPT2Config` to set otherwise.

        Raises:
            algpt2.errors.InputError: if the weights do not fit or are not finite, or another file is damaged.
            TypeError: for an unknown keyword argument.
        """
        unknown = set(kwargs) - {*ALGPT2Config.__dataclass_fields__, *ALGPT2Config.attribute_map, "num_labels"}
        if unknown:
            raise TypeError(f"from_pretrained() got unexpected keyword arguments {sorted(unknown)}")
        config = checkpoint.model_config(**kwargs)
        if preprocessor == "auto":
            preprocessor = None
            if checkpoint.tokenizer:
                preprocessor = cls.preprocessor_cls(
                    TFALGPT2Tokenizer.from_tokenizer(checkpoint.tokenizer, checkpoint.directory),
                    sequence_length=config.n_positions,
                )
        model = cls(TFALGPT2Backbone(config, dtype=dtype), preprocessor=preprocessor)
        assign_weights(model, checkpoint.read_weights(config), source=checkpoint.path)
        return model

    def save_pretrained(self, save_directory, push_to_hub=False, max_shard_size="5GB", **kwargs):
        """Write config.json, generation_config.json, model.weights.h5 and the tokenizer's files.

        Args:
            save_directory: str or path; made if it is not there. What it holds already stays if anything fails.
            max_shard_size: int in bytes, or str such as `"5GB"`. Larger weights become shards and model.weights.json.
            push_to_hub: bool. Whether to upload the directory afterwards.
            **kwargs: as in `push_to_hub`.

        Raises:
            algpt2.errors.InputError: if the directory cannot be written.
            ValueError: for a quantized model, whose weights only `save` and `save_to_preset` keep.
        """
        self._write(save_directory, "tensorflow", KERAS.patterns, max_shard_size)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", str(save_directory).rstrip("/").split("/")[-1]), **kwargs)

    def _write(self, directory, framework, stale, max_shard_size="5GB"):
        if any(layer.quantization_mode for layer in self._flatten_layers()):
            raise ValueError("the model is quantized: save it with save() or save_to_preset(), or before quantize()")
        self._check_tokenizer()
        with files_replaced_in(directory, stale=stale) as temporary:
            config = type(self.config).from_dict(self.config.to_dict())
            config.architectures = [self.architecture]
            config.dtype = self.backbone.variable_dtype
            config.save_pretrained(temporary)
            GenerationConfig.from_model_config(config).save_pretrained(temporary)
            write_checkpoint_weights(
                temporary, config, canonical_weights(self), framework, config.dtype, max_shard_size
            )
            if self.preprocessor is not None:
                self.preprocessor.tokenizer.save_to_directory(temporary, self.config.n_positions)

    def export_to_transformers(self, path):
        """Write the model as `save_pretrained` of its counterpart in PyTorch does, as KerasHub's models write theirs.

        Args:
            path: str or path of the directory.

        Raises:
            algpt2.errors.InputError: if the directory cannot be written.
        """
        self._write(path, "pytorch", SAFETENSORS.patterns)

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, dict):
            check_inputs(inputs, self.config)
        return super().__call__(inputs, *args, **kwargs)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """As `keras_hub.models.Task.from_preset`; refuses a tokenizer that is not of the model's size."""
        model = super().from_preset(preset, load_weights, **kwargs)
        model._check_tokenizer()
        return model

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        sample_weight=None,
        validation_data=None,
        validation_split=None,
        shuffle=True,
        **kwargs,
    ):
        """Train, as `keras.Model.fit`, on strings or arrays, or on a dataset.

        Args:
            shuffle: bool. Whether strings and arrays come in another order in each epoch, as in Keras; KerasHub keeps
                their order, and so do datasets and `validation_split`. The order is that of
                `keras.utils.set_random_seed`.
            x, y, batch_size, sample_weight, validation_data, validation_split, **kwargs: as in `keras.Model.fit`.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: for inputs that do not fit the model.

        Example:
            >>> from algpt2_tf import TFALGPT2LMHeadModel
            >>> model = TFALGPT2LMHeadModel.from_pretrained("runs/demo")  # doctest: +SKIP
            >>> model.fit(["Some text.", "Some more."], batch_size=2)  # doctest: +SKIP
        """
        self._check_arrays(x)
        if shuffle and not validation_split and _is_in_memory(x):
            inputs = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
            x, y, sample_weight, batch_size = _shuffled(inputs, batch_size or 32), None, None, None
            shuffle = False
        return super().fit(
            x, y, batch_size, sample_weight, validation_data, validation_split, shuffle=shuffle, **kwargs
        )

    def evaluate(self, x=None, *args, **kwargs):
        self._check_arrays(x)
        return super().evaluate(x, *args, **kwargs)

    def predict(self, x=None, *args, **kwargs):
        self._check_arrays(x)
        return super().predict(x, *args, **kwargs)

    def _check_arrays(self, x):
        # Checked before a graph is run, whose own errors have many lines.
        self._check_tokenizer()
        if isinstance(x, dict) and self.preprocessor is None:
            check_inputs(x, self.config)

    def _check_tokenizer(self):
        tokenizer = getattr(self.preprocessor, "tokenizer", None)
        if isinstance(tokenizer, TFALGPT2Tokenizer):
            tokenizer.require_size_of(self.config)

    @tf.autograph.experimental.do_not_convert
    def preprocess_samples(self, x, y=None, sample_weight=None):
        data = super().preprocess_samples(x, y, sample_weight)
        check_inputs(keras.utils.unpack_x_y_sample_weight(data)[0], self.config, asserts=True)
        return data


def _is_in_memory(x):
    """Whether `x` is text or arrays, which `fit` can take in any order."""
    kinds = (str, bytes, int, float, np.ndarray, np.generic, tf.Tensor)
    leaves = keras.tree.flatten(x)
    return bool(leaves) and all(isinstance(leaf, kinds) for leaf in leaves)


def _shuffled(inputs, batch_size):
    """A `tf.data.Dataset` of batches of arrays, in another order each time."""
    rows = tf.data.Dataset.from_tensor_slices(inputs)
    return rows.shuffle(len(rows), seed=int(np.random.randint(2**31))).batch(batch_size)


# What grain says of the buffer that KerasHub chooses, at every call, is nothing that users could change.
logging.getLogger("absl").addFilter(lambda record: not record.getMessage().startswith("prefetch_buffer_size="))
