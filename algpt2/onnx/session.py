"""ALGPT2 by ONNX Runtime, token by token: no other framework is needed."""

from pathlib import Path

import numpy as np
import onnxruntime

from algpt2.errors import InputError, library_errors
from algpt2.generation.sampling import log_softmax
from algpt2.onnx import LOGITS_KEPT


class OnnxLanguageModel:
    """A language model in ONNX that goes on from a cache, as `algpt2.onnx.graph` writes it.

    Args:
        source: path of an ONNX file, or bytes of one.
        threads: int; by default as many as there are cores.

    Attributes:
        size: int. The bytes of the model.
        vocab_size: int. The tokens that it gives logits of.

    Raises:
        InputError: if ONNX Runtime cannot load it, or it has no cache or no logits.

    Example:
        >>> model = OnnxLanguageModel("demo/onnx/model_q4.onnx")  # doctest: +SKIP
        >>> decoding = model.start(np.array([[15, 27, 3]]), capacity=64)  # doctest: +SKIP
        >>> decoding.advance(decoding.logits.argmax(-1))  # doctest: +SKIP
    """

    def __init__(self, source, threads=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        self.name = name = "the ONNX model" if isinstance(source, bytes) else str(source)
        with library_errors(f"{name}: onnxruntime cannot load it"):
            self.session = onnxruntime.InferenceSession(
                source if isinstance(source, bytes) else name, options, providers=["CPUExecutionProvider"]
            )
        past = {value.name: value.shape for value in self.session.get_inputs() if value.name.startswith("past_key")}
        if not past:
            raise InputError(f"{name}: has no inputs past_key_values.*; write it by `convert export --to onnx`")
        self.size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        self.past_names = list(past)
        # Graphs that earlier versions wrote compute all logits.
        optional = {value.name for value in self.session.get_overridable_initializers()}
        self._last_token = {LOGITS_KEPT: np.array(1)} if LOGITS_KEPT in optional else {}
        outputs = {value.name: value.shape for value in self.session.get_outputs()}
        if "logits" not in outputs:
            raise InputError(f"{name}: has no output logits; write it by `convert export --to onnx`")
        self.vocab_size = outputs["logits"][-1]
        _, self.n_head, _, self.head_width = next(iter(past.values()))

    def start(self, ids, capacity, mask=None):
        """Compute a batch of contexts, and keep their keys and values.

        Args:
            ids: int (batch, length).
            capacity: int. The length that the contexts may grow to.
            mask: int (batch, length), 0 for padding, which is on the left.

        Returns:
            `Decoding`.
        """
        return Decoding(self, ids, capacity, mask)

    def run(self, ids, mask=None, positions=None):
        """The logits, float32 (batch, length, V), without a cache; the arguments are those of `outputs`."""
        return self.outputs(ids, mask, positions)["logits"]

    def token_losses(self, ids):
        """The losses in nats, float64 (batch, length - 1), of the tokens of ids (batch, length), int, but the first."""
        found = log_softmax(self.run(ids)[:, :-1].astype("float64"))
        return -np.take_along_axis(found, np.asarray(ids)[:, 1:, None], -1)[..., 0]

    def outputs(self, ids, mask=None, positions=None, last=False):
        """All outputs for an empty past.

        Args:
            ids: int (batch, length).
            mask: int (batch, length), 0 for padding; by default there is none.
            positions: int (batch, length); by default padding has none.
            last: bool. Whether the logits of the last token are enough.

        Returns:
            dict of str to numpy array.
        """
        ids = np.asarray(ids, "int64")
        mask = np.ones_like(ids) if mask is None else np.asarray(mask, "int64")
        empty = np.zeros((len(ids), self.n_head, 0, self.head_width), "float32")
        positions = np.maximum(mask.cumsum(-1) - 1, 0) if positions is None else np.asarray(positions, "int64")
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if last:
            inputs |= self._last_token
        names = [output.name for output in self.session.get_outputs()]
        inputs |= dict.fromkeys(self.past_names, empty)
        with self.computing():
            return dict(zip(names, self.session.run(None, inputs), strict=True))

    def computing(self):
        """A context in which the session computes: an InputError if it cannot."""
        return library_errors(f"{self.name}: cannot compute this; config.json or the tokenizer may be of another model")


class Decoding:
    """Contexts with their keys and values, to which tokens are added.

    Args:
        model: `OnnxLanguageModel`.
        ids, capacity, mask: as in `OnnxLanguageModel.start`.

    Attributes:
        logits: float32 (batch, V), of the token after the last one.
    """

    def __init__(self, model, ids, capacity, mask=None):
        batch, self.length = np.shape(ids)
        self.mask = np.ones((batch, capacity), "int64")
        if mask is not None:
            self.mask[:, : self.length] = mask
        outputs = model.outputs(ids, mask, last=True)
        self.logits = outputs.pop("logits")[:, -1]
        self._model, self.binding = model, model.session.io_binding()
        self._logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type((batch, 1, self.logits.shape[1]), np.float32)
        self.binding.bind_ortvalue_output("logits", self._logits)
        for name in model.past_names:
            present = name.replace("past_key_values", "present")
            states = np.zeros((batch, model.n_head, capacity, model.head_width), "float32")
            states[:, :, : self.length] = outputs[present]
            # The same memory going in and out: attention appends to it in place.
            value = onnxruntime.OrtValue.ortvalue_from_numpy(states)
            self.binding.bind_ortvalue_input(name, value)
            self.binding.bind_ortvalue_output(present, value)

    def advance(self, tokens):
        """Add a token to each context.

        Args:
            tokens: int (batch,).

        Returns:
            float32 (batch, V), the new `logits`; they hold until the next call.

        Raises:
            ValueError: if the contexts are as long as their capacity.
        """
        if self.length == self.mask.shape[1]:
            raise ValueError(f"the contexts have {self.length} tokens, which is their capacity")
        self.length += 1
        mask = np.ascontiguousarray(self.mask[:, : self.length])
        self.binding.bind_cpu_input("input_ids", np.asarray(tokens, "int64").reshape(-1, 1))
        self.binding.bind_cpu_input("attention_mask", mask)
        self.binding.bind_cpu_input("position_ids", mask.sum(-1, keepdims=True) - 1)
        with self._model.computing():
            self._model.session.run_with_iobinding(self.binding)
        self.logits = self._logits.numpy()[:, 0]
        return self.logits
