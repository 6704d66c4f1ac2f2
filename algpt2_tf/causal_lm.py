"""ALGPT2 with a language-model head, as a KerasHub task."""

import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras_hub.models import CausalLM
from keras_hub.samplers import Sampler
from keras_hub.src.utils.tensor_utils import any_equal

from algpt2_tf.backbone import check_inputs, check_length
from algpt2_tf.cpu_kernels import StreamedWeights, on_cpu, streamed_variables
from algpt2_tf.loss import LossOverTokens
from algpt2_tf.preprocessor import TFALGPT2CausalLMPreprocessor
from algpt2_tf.quantization import calibration_structure
from algpt2_tf.task import TFALGPT2Task


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2LMHeadModel(LossOverTokens, TFALGPT2Task, CausalLM):
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
        >>> from algpt2_tf import TFALGPT2Backbone
        >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> ids = np.array([[1, 2, 3]])
        >>> model({"token_ids": ids, "padding_mask": np.ones_like(ids)}).shape
        TensorShape([1, 3, 2048])
    """

    preprocessor_cls = TFALGPT2CausalLMPreprocessor
    architecture = "ALGPT2LMHeadModel"

    def __init__(self, backbone, preprocessor=None, **kwargs):
        self.backbone = backbone
        self.preprocessor = preprocessor
        super().__init__(inputs=backbone.input, outputs=self._outputs(), **kwargs)

    def _outputs(self):
        return self.logits_of(self.backbone(self.backbone.input))

    def logits_of(self, states):
        """The logits, float (batch, length, V), of the output of the backbone, float (batch, length, E)."""
        return self.backbone.token_embedding(states, reverse=True)

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
        for depth, (block, source) in enumerate(backbone.applications):
            states = intercept(block(states, padding_mask=mask, source=source), depth)
        logits = self.logits_of(backbone.project_states(backbone.layer_norm(states)))
        if scoring_mode == "logits":
            return logits
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(target_ids, logits)

    def _normalize_generate_inputs(self, inputs):
        self._check_tokenizer()
        return super()._normalize_generate_inputs(inputs)

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
        return self.logits_of(states), states, cache

    def _build_cache(self, token_ids, prefill=None):
        config = self.config
        batch, length = ops.shape(token_ids)
        leading, dtype = (batch, config.n_head), self.compute_dtype
        if prefill is not None:
            # XLA multiplies matrices with one dimension before their own, and copies a cache with two at every token.
            # Samplers with a loop of their own, as of beams, take the first dimension for the batch.
            if all(getattr(type(self.sampler), name) is getattr(Sampler, name) for name in ("__call__", "run_loop")):
                leading = (batch * config.n_head,)
            if on_cpu():
                dtype = keras.backend.result_type(dtype, "float32")
        empty = ops.zeros((*leading, length, config.n_embd // config.n_head), dtype=dtype)
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
            >>> from algpt2 import ALGPT2Config
            >>> from algpt2_tf import TFALGPT2Backbone
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
        is_streamed = prefill is not None and token_ids.shape[0] == 1 and on_cpu()
        weights = StreamedWeights(streamed_variables(self) if is_streamed else [])

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
