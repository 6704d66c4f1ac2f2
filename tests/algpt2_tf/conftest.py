"""The Keras models that several modules test."""

import keras
import pytest
from models import CONFIGS, random_weights, tiny_config

from algpt2_tf import TFALGPT2Backbone, TFALGPT2CausalLMPreprocessor, TFALGPT2LMHeadModel, TFALGPT2Tokenizer
from algpt2_tf.weights import assign_weights


@pytest.fixture(params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    assign_weights(model, random_weights(config, "float32"))
    return model


@pytest.fixture
def text_model(text_tokenizer):
    """A model with a tokenizer, for strings."""
    keras.utils.set_random_seed(0)
    config = tiny_config(vocab_size=len(text_tokenizer), initializer_range=0.3)
    tokenizer = TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer)
    return TFALGPT2LMHeadModel(TFALGPT2Backbone(config), TFALGPT2CausalLMPreprocessor(tokenizer, sequence_length=48))
