"""The checkpoints of https://github.com/tGhattas/ALGPT2: one block shared by all layers, factorized or not."""

from algpt2.checkpoints.weight_maps.gpt2 import PYTORCH as GPT2
from algpt2.checkpoints.weight_maps.gpt2 import gpt2_config
from algpt2.checkpoints.weight_maps.weight_map import Dialect, Rule
from algpt2.configuration import ALGPT2Config


def is_tghattas(stored):
    """Whether a config.json, a dict, is of this system, which keeps GPT-2's model_type."""
    return stored.get("model_type") == "gpt2" and (
        "factorized_embeds" in stored or "ALGPT2LMHeadModel" in (stored.get("architectures") or ())
    )


def tghattas_config(stored):
    """The configuration of a config.json of this system: its only block is applied `n_layer` times.

    Args:
        stored: dict.

    Returns:
        `ALGPT2Config`.
    """
    config = gpt2_config(stored)
    return ALGPT2Config.from_dict(
        config.to_dict(),
        layer_schedule=[0] * config.n_layer,
        embedding_size=stored.get("small_embedding_size") if stored.get("factorized_embeds") else None,
    )


PYTORCH = Dialect(
    name="tGhattas/ALGPT2",
    naming="pytorch",
    matches=lambda stored, names: is_tghattas(stored),
    rules=(
        *GPT2.rules,
        *(
            Rule(f"{theirs}.{part}", f"{ours}.{part}")
            for theirs, ours in (
                ("transformer.expand_embeddings", "transformer.project_in"),
                ("compress_embeds", "transformer.project_out"),
            )
            for part in ("weight", "bias")
        ),
    ),
    dropped=GPT2.dropped,
)
