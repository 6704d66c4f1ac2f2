"""Keras's `quantize`: matrices in 8 bits, and what it needs to know of blocks that are applied more than once."""

import warnings

import keras


def quantize_int8(model):
    """Round matrices of a model to 8 bits, by Keras's `quantize`, and nothing that they are multiplied with.

    They are those of dense layers and of the token embedding; positions and tied projections stay as they are. This is
    more exact than `quantize("int8")`, and `generate` of one text on a CPU, which reads them in 8 bits, is faster by
    it. Keras does not save the difference: a model that was saved is loaded as `quantize("int8")` makes it.

    Args:
        model: `keras.Model` of float32.

    Returns:
        the model.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> from algpt2_tf import TFALGPT2Backbone
        >>> model = quantize_int8(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> model.transformer_layers[0].c_fc.kernel.dtype
        'int8'
    """
    with warnings.catch_warnings():
        # Keras names every layer that has no matrix.
        warnings.simplefilter("ignore", UserWarning)
        model.quantize(config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))
    return model


def calibration_structure(backbone):
    """The layers of a backbone in the order in which `quantize("gptq")` and `("awq")` calibrate them.

    Keras goes through a list of layers, each of which gets the outputs of the one before, and rounds the matrices of a
    layer with regard to all inputs that they get there. A shared block gets inputs at all its depths, so that these
    depths, and all between them, are one entry of the list.

    Args:
        backbone: `TFALGPT2Backbone`.

    Returns:
        dict of `pre_block_layers`, functions from token ids to embeddings, and `sequential_blocks`, the list.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> from algpt2_tf import TFALGPT2Backbone
        >>> sandwich = ALGPT2Config(layer_schedule=[0, 1, 1, 2], n_embd=16, n_head=2, vocab_size=9)
        >>> [type(entry).__name__ for entry in calibration_structure(TFALGPT2Backbone(sandwich))["sequential_blocks"]]
        ['Dense', 'TFALGPT2Block', 'AppliedBlocks', 'TFALGPT2Block', 'Chain']
    """
    entries, schedule = [], backbone.config.layer_schedule
    if backbone.project_out is not None:
        entries.append(backbone.project_in)
    start = 0
    for end in range(1, len(schedule) + 1):
        if not set(schedule[start:end]) & set(schedule[end:]):
            applied = backbone.applications[start:end]
            entries.append(applied[0][0] if len(applied) == 1 else AppliedBlocks(applied))
            start = end
    if backbone.project_out is not None:
        entries.append(Chain([backbone.layer_norm, backbone.project_out]))
        return {"pre_block_layers": [backbone.embed], "sequential_blocks": entries}
    # Tied projections are one layer of their own kind, which is not rounded.
    pre_layers = [backbone.embed, backbone.project_embeddings]
    return {"pre_block_layers": pre_layers, "sequential_blocks": entries}


class AppliedBlocks(keras.layers.Layer):
    """Blocks at some depths one after the other, as one layer.

    Args:
        applied: list of tuple, as `TFALGPT2Backbone.applications`.

    Call arguments:
        inputs: as of a block.
    """

    def __init__(self, applied):
        super().__init__()
        self.blocks = [block for block, _ in applied]
        self.sources = [source for _, source in applied]

    def call(self, inputs):
        for block, source in zip(self.blocks, self.sources, strict=True):
            inputs = block(inputs, source=source)
        return inputs


class Chain(keras.layers.Layer):
    """Layers one after the other, as one layer.

    Args:
        chain: list of `keras.layers.Layer`.

    Call arguments:
        inputs: as of the first layer.
    """

    def __init__(self, chain):
        super().__init__()
        self.chain = chain

    def call(self, inputs):
        for layer in self.chain:
            inputs = layer(inputs)
        return inputs
