"""Makes ALGPT2's classes known to Keras and KerasHub, which find them by their registered names."""

import algpt2_tf.causal_lm
import algpt2_tf.keras_hub_gpt2
import algpt2_tf.layers
import algpt2_tf.optimization
import algpt2_tf.pretraining
import algpt2_tf.text_classifier  # noqa: F401
