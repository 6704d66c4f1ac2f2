"""The checkpoints of the "albert style" fork of transformers, https://github.com/bilal2vec/transformers.

One block, without a number, shared by all layers, and factorized embeddings. Its files date from 2020. No file of its
TensorFlow model is published; the names here are those that transformers of that time translated into PyTorch's.
"""

from algpt2.checkpoints.weight_maps.gpt2 import KERAS_2_ENDS, keras_2_block
from algpt2.checkpoints.weight_maps.gpt2 import PYTORCH as GPT2
from algpt2.checkpoints.weight_maps.weight_map import TRANSPOSED, Dialect, Rule

PROJECTIONS = {"transformer.projection_layer": "transformer.project_in", "dense": "transformer.project_out"}

PYTORCH = Dialect(
    name="bilal2vec/transformers, albert-style (PyTorch)",
    naming="pytorch",
    matches=lambda stored, names: stored.get("model_type") == "algpt2" and "transformer.h.ln_1.weight" in names,
    rules=(
        *(Rule(rule.theirs.replace("h.{b}.", "h."), rule.ours, rule.layout) for rule in GPT2.rules),
        *(
            Rule(f"transformer.h.{name}", f"transformer.h.{{b}}.{name}")
            for name in (
                *("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.c_attn.bias", "attn.c_proj.bias"),
                *("mlp.c_fc.bias", "mlp.c_proj.bias"),
            )
        ),
        *(Rule(f"{theirs}.{p}", f"{ours}.{p}") for theirs, ours in PROJECTIONS.items() for p in ("weight", "bias")),
    ),
    dropped=(r"transformer\.h\.attn\.(bias|masked_bias)",),
)

KERAS_2 = Dialect(
    name="bilal2vec/transformers, albert-style (TensorFlow)",
    naming="keras 2",
    matches=lambda stored, names: stored.get("model_type") == "algpt2",
    rules=(
        *KERAS_2_ENDS,
        *keras_2_block("transformer/h", "transformer.h.{b}"),
        *(
            rule
            for theirs, ours in PROJECTIONS.items()
            for rule in (
                Rule(f"{theirs.replace('.', '/')}/kernel:0", f"{ours}.weight", TRANSPOSED),
                Rule(f"{theirs.replace('.', '/')}/bias:0", f"{ours}.bias"),
            )
        ),
    ),
)
