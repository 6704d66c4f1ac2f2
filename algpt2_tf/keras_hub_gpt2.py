"""Plain GPT-2 for KerasHub: its `GPT2CausalLM`, also with a head of its own, as a preset."""

import json

import keras
from keras_hub.models import GPT2Backbone, GPT2CausalLM, GPT2CausalLMPreprocessor, GPT2Tokenizer

from algpt2.checkpoints.formats import KERAS
from algpt2.data.tokenizer import is_gpt2_tokenizer


@keras.saving.register_keras_serializable(package="algpt2")
class UntiedGPT2Backbone(GPT2Backbone):
    """KerasHub's GPT-2 backbone, with a matrix of its own for the head; KerasHub's always uses that of the embedding.

    Args:
        *args, **kwargs: as in `keras_hub.models.GPT2Backbone`.

    Example:
        >>> sizes = {"vocabulary_size": 97, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 32}
        >>> backbone = UntiedGPT2Backbone(**sizes)
        >>> tuple(backbone.token_embedding.reverse_embeddings.shape)
        (8, 97)
    """

    def __setattr__(self, name, value):
        if name == "token_embedding":
            # Set before the layer is built, which is when it makes a matrix of its own or not.
            value.tie_weights = False
        super().__setattr__(name, value)


@keras.saving.register_keras_serializable(package="algpt2")
class UntiedGPT2Tokenizer(GPT2Tokenizer):
    """KerasHub's tokenizer of GPT-2, which `from_preset` finds by the backbone that it belongs to."""

    backbone_cls = UntiedGPT2Backbone


@keras.saving.register_keras_serializable(package="algpt2")
class UntiedGPT2CausalLMPreprocessor(GPT2CausalLMPreprocessor):
    """KerasHub's preprocessor of GPT-2, which `from_preset` finds by the backbone that it belongs to."""

    backbone_cls = UntiedGPT2Backbone
    tokenizer_cls = UntiedGPT2Tokenizer


@keras.saving.register_keras_serializable(package="algpt2")
class UntiedGPT2CausalLM(GPT2CausalLM):
    """KerasHub's GPT-2 with a head of its own, which `GPT2CausalLM.from_preset` finds by its backbone."""

    backbone_cls = UntiedGPT2Backbone
    preprocessor_cls = UntiedGPT2CausalLMPreprocessor


def save_preset(directory, config, tokenizer, dtype):
    """Make a KerasHub preset of a directory that holds the weights of a GPT-2 in KerasHub's dialect.

    Args:
        directory: `Path`.
        config: `algpt2.ALGPT2Config` without sharing and factorization.
        tokenizer: `transformers.PreTrainedTokenizerFast`, or `None`. The preset has a preprocessor if it tokenizes as
            GPT-2's does.
        dtype: str. That of the weights.
    """
    task = GPT2CausalLM if config.tie_word_embeddings else UntiedGPT2CausalLM
    backbone = task.backbone_cls(
        vocabulary_size=config.vocab_size,
        num_layers=config.n_layer,
        num_heads=config.n_head,
        hidden_dim=config.n_embd,
        intermediate_dim=config.inner_width,
        dropout=config.resid_pdrop,
        max_sequence_length=config.n_positions,
        dtype=dtype,
    )
    backbone.load_weights(directory / KERAS.file)
    preprocessor = None
    if tokenizer and is_gpt2_tokenizer(tokenizer):
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        preprocessor = task.preprocessor_cls(
            task.preprocessor_cls.tokenizer_cls(vocabulary=model["vocab"], merges=merges),
            sequence_length=config.n_positions,
        )
    task(backbone, preprocessor).save_to_preset(str(directory))
