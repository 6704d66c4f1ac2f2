"""GGUF, as llama.cpp and transformers read a GPT-2."""

import json
import math

import numpy as np

from algpt2.checkpoints.weights import not_finite
from algpt2.errors import InputError
from algpt2.files.reading import require_ordinary
from convert.conversion import read_metadata
from convert.gguf_layout import stored_config, their_name
from convert.plain_gpt2 import as_gpt2

# What llama.cpp computes; it has no other activations for a GPT-2.
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# The numbers of a row that share a scale.
BLOCK = 32


def write(checkpoint, path, quantize=None):
    """Write the GPT-2 that computes the same as a checkpoint.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint` with a tokenizer.
        path: `Path` of the file.
        quantize: str, `"f16"`, `"q8_0"` or `"q4_0"`, of the matrices; `None` means float32.

    Raises:
        InputError: if llama.cpp does not compute or split texts as the checkpoint does.
    """
    import gguf

    metadata = read_metadata(checkpoint)
    config, weights = as_gpt2(metadata.config, checkpoint.weights)
    if config.activation_function not in ACTIVATIONS:
        raise InputError(f"activation_function is {config.activation_function!r}; llama.cpp's GPT-2 has gelu_new only")
    tokens, types, merges = _vocabulary(checkpoint.require_tokenizer(), config.vocab_size)
    dtype = getattr(gguf.GGMLQuantizationType, (quantize or "f32").upper())

    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_name(checkpoint.directory.resolve().name)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_width)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_file_type(getattr(gguf.LlamaFileType, {None: "ALL_F32"}.get(quantize, f"MOSTLY_{quantize}".upper())))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for role in ("bos", "eos", "pad"):
        token = getattr(metadata.tokenizer, f"{role}_token_id")
        if token is not None:
            getattr(writer, f"add_{role}_token_id")(token)
    writer.add_add_bos_token(False)
    for name, weight in weights.items():
        array = np.asarray(weight, "float32")
        # llama.cpp takes vectors and positions in float32, and blocks of whole rows.
        whole = array.ndim == 1 or "wpe" in name or (quantize in ("q8_0", "q4_0") and array.shape[1] % BLOCK)
        kind = gguf.GGMLQuantizationType.F32 if whole else dtype
        _check_range(checkpoint.path, name, array, kind.name)
        writer.add_tensor(their_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_range(source, name, array, kind):
    """Raise an InputError for numbers that a kind of GGUF does not hold."""
    if not np.isfinite(array).all():
        raise InputError(f"{source}: {not_finite(name)}")
    # Blocks are scaled by a float16.
    largest, most = float(np.abs(array).max()), {"F16": 1, "Q8_0": 127, "Q4_0": 8}.get(kind, math.inf) * 65504
    if largest > most:
        raise InputError(f"{source}: {name} holds {largest:.3g}, {kind} at most {most:.3g}; take another --quantize")


def outputs(path, quantize=None):
    """The function of a GGUF file, by transformers, which reads its weights as float32.

    Args:
        path: `Path`.
        quantize: not used: the file says it.

    Returns:
        function from ids and mask, int64 (batch, length), to a dict of `logits`, float32 (batch, length, V).
    """
    import gguf
    import torch
    from transformers import GPT2LMHeadModel

    require_ordinary(path)
    try:
        config = stored_config(gguf.GGUFReader(path))
        model = GPT2LMHeadModel.from_pretrained(path.parent, gguf_file=path.name, config=config, dtype=torch.float32)
    except Exception as error:  # of whatever kind gguf, numpy and transformers raise
        raise InputError(f"{path}: not readable as GGUF ({error}); write it again") from error
    model.eval()

    def run(ids, mask):
        with torch.no_grad():
            return {"logits": model(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()}

    return run


def _vocabulary(tokenizer, vocab_size):
    """The tokens, their types and the merges; an InputError unless llama.cpp splits texts in the same way."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, splitter = state["model"], state["pre_tokenizer"] or {}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    if model["type"] != "BPE" or any(splitter.get(key, value) != value for key, value in plain.items()) or not splitter:
        raise InputError("the tokenizer splits texts in another way than GPT-2's, which llama.cpp has no name for")
    if state["normalizer"] is not None:
        raise InputError("the tokenizer normalizes texts, which llama.cpp's GPT-2 does not")
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]
    types = [UNUSED] * vocab_size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return tokens, types, merges
