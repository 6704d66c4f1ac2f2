"""What GGUF calls the weights and the configuration of a GPT-2, for those who write files and those who read them."""

import numpy as np
from transformers import GPT2Config

NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def their_name(name):
    """What a canonical weight is called in GGUF.

    Example:
        >>> their_name("transformer.h.3.mlp.c_fc.bias")
        'blk.3.ffn_up.bias'
    """
    layer, _, part = name.rpartition(".")
    if not layer.startswith("transformer.h."):
        return f"{NAMES[layer]}.{part}"
    _, _, block, within = layer.split(".", 3)
    return f"blk.{block}.{NAMES[within]}.{part}"


def stored_config(reader):
    """The configuration that a file says; transformers alone takes n_positions to be 1024 and n_inner 4 n_embd.

    Args:
        reader: `gguf.GGUFReader` of a GPT-2.

    Returns:
        `transformers.GPT2Config`.
    """

    def value(key):
        return reader.get_field(f"gpt2.{key}").contents()

    return GPT2Config(
        vocab_size=len(reader.get_field("tokenizer.ggml.tokens").contents()),
        n_positions=value("context_length"),
        n_embd=value("embedding_length"),
        n_inner=value("feed_forward_length"),
        n_layer=value("block_count"),
        n_head=value("attention.head_count"),
        # The file keeps it in float32: 1e-5, not 9.999999747378752e-06.
        layer_norm_epsilon=float(str(np.float32(value("attention.layer_norm_epsilon")))),
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
        # The tokenizer knows them; by default they are those of GPT-2's own vocabulary.
        bos_token_id=None,
        eos_token_id=None,
    )
