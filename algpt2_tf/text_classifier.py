"""ALGPT2 with a head that classifies texts, as a KerasHub task."""

import keras
from keras_hub.models import TextClassifier

from algpt2 import ALGPT2Config
from algpt2.errors import InputError
from algpt2_tf.heads import LastTokenHead
from algpt2_tf.preprocessor import TFALGPT2TextClassifierPreprocessor
from algpt2_tf.task import TFALGPT2Task


@keras.saving.register_keras_serializable(package="algpt2")
class ClassificationHead(LastTokenHead):
    """Classifies texts, without bias, as GPT-2's.

    Args:
        num_classes: int.
        initializer_range, **kwargs: as in `LastTokenHead`.
    """

    def __init__(self, num_classes, initializer_range=0.02, **kwargs):
        super().__init__(num_classes, initializer_range, use_bias=False, **kwargs)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.units}


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2TextClassifier(TFALGPT2Task, TextClassifier):
    """ALGPT2 with a linear head on the final hidden state of the last token, to classify texts, as GPT-2's in PyTorch.

    Args:
        backbone: `TFALGPT2Backbone`.
        num_classes: int; by default that of the backbone's configuration, its `num_labels`.
        preprocessor: `TFALGPT2TextClassifierPreprocessor`, or `None` for inputs that are token ids already.
        activation: str or function, of the logits. `"softmax"` gives probabilities.
        **kwargs: as in `keras_hub.models.TextClassifier`.

    Call arguments:
        inputs: dict of `token_ids`, int32 (batch, length), and `padding_mask`, int32 (batch, length), 0 for padding.

    Returns:
        float (batch, num_classes).

    Example:
        >>> from algpt2_tf import TFALGPT2Backbone
        >>> config = ALGPT2Config.from_preset("algpt2-tiny", id2label={0: "negative", 1: "positive"})
        >>> model = TFALGPT2TextClassifier(TFALGPT2Backbone(config))
        >>> ids = keras.ops.convert_to_numpy([[1, 2, 3]])
        >>> model({"token_ids": ids, "padding_mask": ids > 0}).shape
        TensorShape([1, 2])
    """

    preprocessor_cls = TFALGPT2TextClassifierPreprocessor
    architecture = "ALGPT2ForSequenceClassification"

    def __init__(self, backbone, num_classes=None, preprocessor=None, activation=None, **kwargs):
        # === Layers ===
        self.backbone, self.preprocessor = backbone, preprocessor
        self._config = _with_classes(backbone.config, num_classes)
        self.num_classes = self._config.num_labels
        self.activation = keras.activations.get(activation)
        self.classification_head = ClassificationHead(
            self.num_classes, backbone.config.initializer_range, dtype=backbone.dtype_policy, name="score"
        )

        # === Functional model ===
        # The backbone gives what its embedding multiplies, which is not what the head reads.
        states = keras.Model(backbone.input, backbone.hidden_states[-1])(backbone.input)
        logits = self.classification_head(states, backbone.input["padding_mask"])
        super().__init__(inputs=backbone.input, outputs=self.activation(logits), **kwargs)

    @property
    def config(self):
        """`ALGPT2Config`: that of the backbone, with the names of the classes."""
        return self._config

    @classmethod
    def from_checkpoint(cls, checkpoint, dtype=None, preprocessor="auto", num_classes=None, **kwargs):
        """As `TFALGPT2LMHeadModel.from_checkpoint`; of a language model's checkpoint the head is new.

        Args:
            num_classes: int. Starts a new head, whatever the checkpoint has; its classes have the names of `id2label`.
            checkpoint, dtype, preprocessor, **kwargs: as there.
        """
        if num_classes is not None:
            checkpoint = checkpoint.without_heads()
            kwargs["num_labels"] = num_classes
        return super().from_checkpoint(checkpoint, dtype, preprocessor, **kwargs)

    @property
    def trainable_variables(self):
        return self._used(super().trainable_variables)

    @property
    def trainable_weights(self):
        return self._used(super().trainable_weights)

    def _used(self, variables):
        """Of some variables those that the head reads from, not what only the logits of a language model need."""
        backbone = self.backbone
        unused = [] if backbone.project_out is None else list(backbone.project_out.variables)
        if backbone.config.tie_projections:
            unused.append(backbone.project_in.reverse_bias)
        if not backbone.config.tie_word_embeddings:
            unused.append(backbone.token_embedding.reverse_embeddings)
        ids = {id(variable) for variable in unused}
        return [variable for variable in variables if id(variable) not in ids]

    def _write(self, *args, **kwargs):
        if self.preprocessor is not None:
            # PyTorch's head tells texts from padding by it.
            self.config.pad_token_id = self.preprocessor.tokenizer.name_pad_token()
        super()._write(*args, **kwargs)

    def get_config(self):
        activation = keras.activations.serialize(self.activation)
        return {**super().get_config(), "num_classes": self.num_classes, "activation": activation}


def _with_classes(config, num_classes):
    if num_classes is None or num_classes == config.num_labels:
        return config
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}; expected a positive integer")
    config = ALGPT2Config.from_dict(config.to_dict())
    config.num_labels = num_classes
    return config


# KerasHub names its models without a framework.
ALGPT2TextClassifier = TFALGPT2TextClassifier
