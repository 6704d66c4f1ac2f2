"""ALGPT2 with a language-model head, as a KerasHub task."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras_hub.models import CausalLM
from keras_hub.src.utils.tensor_utils import any_equal
from transformers import GenerationConfig
from transformers.utils import PushToHubMixin

from algpt2 import ALGPT2Config
from algpt2.atomic import files_replaced_in
from algpt2.checkpoints.checkpoint import find_checkpoint, open_checkpoint, write_checkpoint_weights
from algpt2.checkpoints.formats import KERAS, SAFETENSORS
from algpt2_tf.backbone import TFALGPT2Backbone, check_inputs, check_length
from algpt2_tf.cpu_kernels import StreamedWeights
from algpt2_tf.loss import LossOverTokens
from algpt2_tf.preprocessor import TFALGPT2CausalLMPreprocessor
from algpt2_tf.quantization import calibration_structure
from algpt2_tf.tokenizer import TFALGPT2Tokenizer
from algpt2_tf.weights import assign_weights, canonical_weights


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2LMHeadModel(LossOverTokens, CausalLM, PushToHubMixin):
    """ALGPT2 with a language-model head tied to the token embedding.

    Args:
        backbone: `TFALGPT2Backbone`.
        preprocessor: `TFALGPT2CausalLMPreprocessor`, or `None` for inputs that are token ids already.
        **kwargs: as in `keras_hub.models.CausalLM`.

    Call arguments:
        inputs: dict of `token_ids`, int32 (batch, length), and `padding_mask`, int32 (batch, length), 0 for padding.

    Returns:
        float (batch, length, V), the next-token logits.

    Example:
        >>> import numpy as np
        >>> from algpt2 import ALGPT2Config
        >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> ids = np.array([[1, 2, 3]])
        >>> model({"token_ids": ids, "padding_mask": np.ones_like(ids)}).shape
        TensorShape([1, 3, 2048])
    """

    backbone_cls = TFALGPT2Backbone
    preprocessor_cls = TFALGPT2CausalLMPreprocessor
    # The name of the PyTorch model with the same heads, for config.json.
    architecture = "ALGPT2LMHeadModel"

    def __init__(self, backbone, preprocessor=None, **kwargs):
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=backbone.input, outputs=self._outputs(), **kwargs)

    def _outputs(self):
        return self._logits(self.backbone(self.backbone.input))

    def _logits(self, states):
        return self.backbone.token_embedding(states, reverse=True)

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
        unknown = set(kwargs) - {*ALGPT2Config.__dataclass_fields__, *ALGPT2Config.attribute_map}
        if unknown:
            raise TypeError(f"from_pretrained() got unexpected keyword arguments {sorted(unknown)}")
        config = checkpoint.model_config(**kwargs)
        if preprocessor == "auto":
            preprocessor = None
            if checkpoint.tokenizer:
                preprocessor = TFALGPT2CausalLMPreprocessor(
                    TFALGPT2Tokenizer.from_tokenizer(checkpoint.tokenizer, checkpoint.directory),
                    sequence_length=config.n_positions,
                )
        model = cls(TFALGPT2Backbone(config, dtype=dtype), preprocessor)
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
        """Write the model as `ALGPT2LMHeadModel.save_pretrained` of PyTorch does, as KerasHub's models write theirs.

        Args:
            path: str or path of the directory.

        Raises:
            algpt2.errors.InputError: if the directory cannot be written.
        """
        self._write(path, "pytorch", SAFETENSORS.patterns)

    def score(self, token_ids, padding_mask=None, scoring_mode="logits", layer_intercept_fn=None, target_ids=None):
        """Logits or losses of given tokens, as of KerasHub's models, without dropout.

        Args:
            token_ids: int (batch, length).
            padding_mask: int or bool (batch, length), 0 for padding; by default there is none.
            scoring_mode: str, `"logits"` or `"loss"`.
            layer_intercept_fn: function of the activations and the number of a depth, to the activations that go on
                from there, of the same shape; -1 is the sum of the embeddings, which is E wide.
            target_ids: int (batch, length), the tokens that `"loss"` is taken for.

        Returns:
            float (batch, length, V), or the losses in nats, float (batch, length).

        Raises:
            ValueError: for another mode, or a loss without targets.
        """
        if scoring_mode not in ("logits", "loss"):
            raise ValueError(f"scoring_mode is {scoring_mode!r}; expected 'logits' or 'loss'")
        if scoring_mode == "loss" and target_ids is None:
            raise ValueError("scoring_mode 'loss' needs target_ids")
        intercept = layer_intercept_fn or (lambda states, depth: states)
        mask = ops.ones_like(token_ids) if padding_mask is None else padding_mask
        backbone = self.backbone
        states = backbone.project_embeddings(intercept(backbone.embed(token_ids), -1))
        for depth, block in enumerate(self.config.layer_schedule):
            states = intercept(backbone.transformer_layers[block](states, padding_mask=mask), depth)
        logits = self._logits(backbone.project_states(backbone.layer_norm(states)))
        if scoring_mode == "logits":
            return logits
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(target_ids, logits)

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, dict):
            check_inputs(inputs, self.config)
        return super().__call__(inputs, *args, **kwargs)

    @classmethod
    def from_preset(cls, preset, load_weights=True, **kwargs):
        """As `keras_hub.models.CausalLM.from_preset`; refuses a tokenizer that is not of the model's size."""
        model = super().from_preset(preset, load_weights, **kwargs)
        model._check_tokenizer()
        return model

    def fit(self, x=None, *args, **kwargs):
        self._check_arrays(x)
        return super().fit(x, *args, **kwargs)

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
        if isinstance(self.preprocessor, TFALGPT2CausalLMPreprocessor):
            self.preprocessor.tokenizer.require_size_of(self.config)

    def _normalize_generate_inputs(self, inputs):
        self._check_tokenizer()
        return super()._normalize_generate_inputs(inputs)

    @tf.autograph.experimental.do_not_convert
    def preprocess_samples(self, x, y=None, sample_weight=None):
        data = super().preprocess_samples(x, y, sample_weight)
        check_inputs(keras.utils.unpack_x_y_sample_weight(data)[0], self.config, asserts=True)
        return data

    def call_with_cache(self, token_ids, cache, cache_update_index):
        """Logits of some positions, with the keys and values of all earlier ones.

        Args:
            token_ids: int32 (batch, length), the tokens from `cache_update_index` on.
            cache: as in `TFALGPT2Backbone.call_with_cache`.
            cache_update_index: int. The position of the first of `token_ids`.

        Returns:
            tuple of logits (batch, length, V), the states (batch, length, E) that they come from and the updated cache.
        """
        states, cache = self.backbone.call_with_cache(token_ids, cache, cache_update_index)
        return self._logits(states), states, cache

    def _build_cache(self, token_ids, prefill=None):
        config = self.config
        batch, length = ops.shape(token_ids)
        empty = ops.zeros((batch, config.n_head, length, config.n_embd // config.n_head), dtype=self.compute_dtype)
        cache = ((empty, empty),) * config.n_layer
        states, cache = self.backbone.call_with_cache(token_ids[:, :prefill], cache, 0)
        # Samplers are promised the states of all positions.
        return tf.pad(states, ((0, 0), (0, length - tf.shape(states)[1]), (0, 0))), cache

    def compile(self, *args, repetition_penalty=1.0, streamer=None, **kwargs):
        """Choose how the model trains and generates, as in `keras_hub.models.CausalLM.compile`.

        A loss that Keras takes the mean of is the mean over the tokens that count, on all replicas: padding and labels
        of -100 do not.

        Args:
            repetition_penalty: float. In generation, the positive logits of the tokens of a sequence so far are
                divided by it and the negative ones multiplied, before the sampler sees them.
            streamer: function of int32 (batch,), called in generation with every new token as soon as the model goes
                on from it; the last one comes only with the result. XLA cannot call it, so that `jit_compile` is then
                False.
            *args, **kwargs: as in `keras_hub.models.CausalLM.compile`. Generation is compiled by XLA unless
                `jit_compile=False` is given or XLA cannot compile it; random samplers draw other tokens from the same
                seed with XLA than without. Training with `"auto"` is not compiled by XLA on CPUs.

        References:
            repetition_penalty: Keskar et al., 2019 (CTRL), https://arxiv.org/abs/1909.05858, section 4.1.

        Example:
            >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
            >>> model.compile(sampler="greedy", repetition_penalty=1.2)
        """
        if streamer is not None:
            kwargs["jit_compile"] = False
        super().compile(*args, **kwargs)
        self.repetition_penalty, self.streamer = repetition_penalty, streamer
        self._jit_generate = False if self.run_eagerly else kwargs.get("jit_compile", "auto")

    def _penalized(self, logits, prompt, index):
        """The logits (batch, V) with the penalty on the tokens before `index`, in float32 as in transformers."""
        batch, length = ops.shape(prompt)
        seen = ops.where(ops.arange(length)[None] < index, prompt, prompt[:, :1])
        logits = ops.cast(logits, "float32")
        scores = ops.take_along_axis(logits, seen, axis=-1)
        penalty = self.repetition_penalty
        scores = ops.where(scores < 0, scores * penalty, scores / penalty)
        rows = ops.broadcast_to(ops.arange(batch, dtype=seen.dtype)[:, None], (batch, length))
        places = ops.reshape(ops.stack((rows, seen), axis=-1), (-1, 2))
        # A token that is there twice gets the same value twice.
        return ops.scatter_update(logits, places, ops.reshape(scores, (-1,)))

    def generate(self, inputs, max_length=None, stop_token_ids="auto", strip_prompt=False):
        """Continue texts, or token ids if there is no preprocessor, as `keras_hub.models.CausalLM.generate`.

        Args:
            inputs, max_length, strip_prompt: as there.
            stop_token_ids: int, or array or sequence of int. The tokens that end a text; `"auto"` means the end token
                of the preprocessor, `None` none.

        Raises:
            ValueError: for stop tokens that are not integers.
        """
        if stop_token_ids is not None and not isinstance(stop_token_ids, str):
            ids = np.ravel(stop_token_ids)
            if ids.size and ids.dtype.kind not in "iu":
                raise ValueError(f"stop_token_ids are of dtype {ids.dtype}; expected integers")
            stop_token_ids = tuple(ids.tolist()) or None
        return super().generate(inputs, max_length, stop_token_ids, strip_prompt)

    def make_generate_function(self):
        """The function that `generate` calls; XLA compiles it for each length and few lengths of prompts."""
        if self.generate_function is None:
            step = self._xla_step() if self._jit_generate else super().make_generate_function()

            def generate(inputs, stop_token_ids=None):
                # Checked before TensorFlow traces, whose own errors have many lines.
                check_inputs(inputs, self.config)
                return step(inputs, stop_token_ids)

            self.generate_function = generate
        return self.generate_function

    def _xla_step(self):
        compiled = tf.function(self.generate_step, jit_compile=True)
        without_xla = None

        def step(inputs, stop_token_ids):
            nonlocal without_xla
            if without_xla is not None:
                return without_xla(inputs, stop_token_ids)
            # Rounded up to a power of two, since XLA compiles anew for every number of positions computed at once.
            shortest = max(int(np.sum(inputs["padding_mask"], axis=-1).min()), 1)
            length = inputs["padding_mask"].shape[1]
            try:
                return compiled(inputs, stop_token_ids, min(max(32, 1 << (shortest - 1).bit_length()), length))
            except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError) as error:
                if self._jit_generate is True:
                    raise
                reason = error.message.partition("\n")[0]
                warnings.warn(f"XLA cannot compile generation ({reason}); going on without", stacklevel=4)
                without_xla = tf.function(self.generate_step)
                return without_xla(inputs, stop_token_ids)

        return step

    def generate_step(self, inputs, stop_token_ids=None, prefill=None):
        """Continue a batch of padded prompts; `generate` compiles and calls this.

        Args:
            inputs: dict of `token_ids`, int32 (batch, max_length), and `padding_mask`, 1 for the prompts' tokens.
            stop_token_ids: tuple of int, the tokens that end a sequence; or `None`.
            prefill: int. How many of the first positions to compute at once: at least the length of the shortest
                prompt, which is the default. To be given only with XLA, which needs a fixed number.

        Returns:
            dict of `token_ids` and `padding_mask`, as the inputs; the mask ends at the first stop token.
        """
        token_ids, padding_mask = inputs["token_ids"], ops.cast(inputs["padding_mask"], "bool")
        if token_ids.shape[1] is not None:
            check_length(token_ids.shape[1], self.config)
        # KerasHub's samplers would take padding that equals a stop token for the end of the sequence.
        filler = min(set(range(len(stop_token_ids or ()) + 1)) - set(stop_token_ids or ()))
        token_ids = ops.where(padding_mask, token_ids, filler)
        first_free = ops.min(ops.sum(ops.cast(padding_mask, "int32"), axis=-1))
        hidden_states, cache = self._build_cache(token_ids, prefill or ops.maximum(first_free, 1))
        is_streamed = prefill is not None and token_ids.shape[0] == 1 and not tf.config.list_logical_devices("GPU")
        weights = StreamedWeights(self.variables if is_streamed else [])

        def next_token(prompt, cache, index):
            last_token = ops.slice(prompt, (0, index - 1), (ops.shape(prompt)[0], 1))
            if self.streamer is not None:
                tf.numpy_function(stream, [last_token[:, 0], index, first_free], [])
            with weights.scope(index):
                logits, hidden_states, cache = self.call_with_cache(last_token, cache, index - 1)
            logits = ops.squeeze(logits, axis=1)
            if self.repetition_penalty != 1.0:
                logits = self._penalized(logits, prompt, index)
            return logits, ops.squeeze(hidden_states, axis=1), cache

        def stream(tokens, index, first_free):
            # The first call goes on from the last token of the prompt, which is not new.
            if index > first_free:
                self.streamer(tokens)

        token_ids = self.sampler(
            next=next_token,
            prompt=token_ids,
            cache=cache,
            index=first_free,
            mask=padding_mask,
            stop_token_ids=stop_token_ids,
            hidden_states=hidden_states,
            model=self,
        )
        if stop_token_ids is None:
            return {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids, dtype="bool")}
        is_stop = ops.cast(any_equal(token_ids, stop_token_ids, ops.logical_not(padding_mask)), "int32")
        stops_before = ops.cumsum(is_stop, axis=-1) - is_stop
        return {"token_ids": token_ids, "padding_mask": ops.equal(stops_before, 0)}

    def get_quantization_layer_structure(self, mode):
        """The order in which Keras's `quantize` goes through the layers, with `"gptq"` and `"awq"`."""
        return calibration_structure(self.backbone) if mode in ("gptq", "awq") else None


# KerasHub names its models without a framework.
ALGPT2CausalLM = TFALGPT2LMHeadModel
