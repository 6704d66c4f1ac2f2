"""ALGPT2 with two heads for pretraining in Keras: the language model and sentence-order prediction."""

import keras

from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.heads import LastTokenHead


@keras.saving.register_keras_serializable(package="algpt2")
class SentenceOrderHead(LastTokenHead):
    """Tells the order of two segments: 0 as in the text, 1 swapped.

    Args:
        initializer_range, **kwargs: as in `LastTokenHead`.
    """

    def __init__(self, initializer_range=0.02, **kwargs):
        super().__init__(2, initializer_range, use_bias=True, **kwargs)


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2ForPreTraining(TFALGPT2LMHeadModel):
    """ALGPT2 with a language-model head, and a head that tells whether two segments are in their order.

    The order is read from the final hidden state of the last token, which has seen both segments. The model is trained
    on token ids: its targets are a dict with the keys of its outputs. `generate` continues texts as the language model.

    Args:
        backbone, preprocessor, **kwargs: as in `TFALGPT2LMHeadModel`.

    Call arguments:
        inputs: dict of `token_ids`, int32 (batch, length), and `padding_mask`, int32 (batch, length), 0 for padding.

    Returns:
        dict of `logits`, float (batch, length, V), and `sop_logits`, float (batch, 2): 0 in order, 1 swapped.

    References:
        Sentence-order prediction: ALBERT (Lan et al., 2020, section 3.1, https://arxiv.org/abs/1909.11942).

    Example:
        >>> import numpy as np
        >>> from algpt2 import ALGPT2Config
        >>> from algpt2_tf import TFALGPT2Backbone
        >>> model = TFALGPT2ForPreTraining(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> ids = np.array([[1, 2, 3]])
        >>> model({"token_ids": ids, "padding_mask": np.ones_like(ids)})["sop_logits"].shape
        TensorShape([1, 2])
    """

    architecture = "ALGPT2ForPreTraining"

    def __init__(self, backbone, preprocessor=None, **kwargs):
        self.sop_classifier = SentenceOrderHead(
            backbone.config.initializer_range, dtype=backbone.dtype_policy, name="sop_classifier"
        )
        # The backbone gives only what its embedding multiplies.
        self.both_states = keras.Model(backbone.input, (backbone.hidden_states[-1], backbone.output))
        super().__init__(backbone, preprocessor, **kwargs)

    def _outputs(self):
        hidden_states, states = self.both_states(self.backbone.input)
        return {
            "logits": self.logits_of(states),
            "sop_logits": self.sop_classifier(hidden_states, self.backbone.input["padding_mask"]),
        }

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **kwargs):
        """As `TFALGPT2LMHeadModel.compile`; `"auto"` means the cross-entropy and the accuracy of both outputs."""
        names = ("logits", "sop_logits")
        if loss == "auto":
            loss = {name: keras.losses.SparseCategoricalCrossentropy(from_logits=True) for name in names}
        if weighted_metrics == "auto":
            weighted_metrics = {name: [keras.metrics.SparseCategoricalAccuracy()] for name in names}
        super().compile(optimizer, loss, weighted_metrics=weighted_metrics, **kwargs)

    def language_model(self):
        """`keras.Model` of the same layers from the inputs to `logits` alone, as `TFALGPT2LMHeadModel` gives them."""
        return keras.Model(self.input, self.output["logits"])


def language_model_class(with_sop):
    """The class of a language model, with or without a sentence-order head (bool)."""
    return TFALGPT2ForPreTraining if with_sop else TFALGPT2LMHeadModel
