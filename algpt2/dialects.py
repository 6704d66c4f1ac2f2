"""The checkpoints of other systems: one table of tensor names each, and what their configuration means here."""

import re
from dataclasses import dataclass, fields

from transformers import GPT2Config

from algpt2.configuration import ALGPT2Config
from algpt2.errors import InputError

# `{b}` stands for a block index; rows marked TRANSPOSE hold a matrix as (in, out); DROP has no counterpart here.
TRANSPOSE, DROP = "transpose", "drop"
BARE_NAMES = ("wte.", "wpe.", "h.", "ln_f.", "project_in.")


@dataclass(frozen=True)
class Dialect:
    """How one system names its tensors.

    Args:
        tensors: tuple of (their name, our name) or (their name, our name, TRANSPOSE) or (their name, DROP).
        config: function from their config.json, a dict, to an `ALGPT2Config`.
    """

    tensors: tuple
    config: callable

    def to_canonical(self, weights):
        """Rename and transpose; a tensor that the table does not know keeps its name, for the check to report.

        Args:
            weights: dict of str to numpy array, in this dialect.

        Returns:
            dict of str to numpy array with canonical names.
        """
        # A bare transformer, saved without its head, has no prefix.
        prefixed = {f"transformer.{n}" if n.startswith(BARE_NAMES) else n: t for n, t in weights.items()}
        if len(prefixed) != len(weights):
            raise InputError("some tensors are there twice, with and without the prefix `transformer.`")
        rules = [(_name_pattern(theirs), rule) for theirs, *rule in self.tensors]
        canonical = {}
        for name, tensor in prefixed.items():
            pattern, rule = next(((p, r) for p, r in rules if p.fullmatch(name)), (None, None))
            if rule is None:
                canonical[name] = tensor
            elif rule[0] != DROP:
                block = pattern.fullmatch(name).groupdict().get("b")
                canonical[rule[0].replace("{b}", str(block))] = tensor.T if TRANSPOSE in rule else tensor
        return canonical


def _name_pattern(template):
    return re.compile(re.escape(template).replace(r"\{b\}", r"(?P<b>\d+)"))


def _gpt2_config(stored):
    theirs = GPT2Config.from_dict(stored)
    for field, expected in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if getattr(theirs, field) != expected:
            raise InputError(f"config.json: {field} is {getattr(theirs, field)}; ALGPT2 computes {expected} only")
    shared = {field.name for field in fields(GPT2Config)} & {field.name for field in fields(ALGPT2Config)}
    values = {name: getattr(theirs, name) for name in shared}
    values.update(embedding_size=None, layer_schedule=list(range(theirs.n_layer)), architectures=None)
    return ALGPT2Config(**values)


GPT2 = Dialect(
    config=_gpt2_config,
    tensors=(
        ("transformer.h.{b}.attn.c_attn.weight", "transformer.h.{b}.attn.c_attn.weight", TRANSPOSE),
        ("transformer.h.{b}.attn.c_proj.weight", "transformer.h.{b}.attn.c_proj.weight", TRANSPOSE),
        ("transformer.h.{b}.mlp.c_fc.weight", "transformer.h.{b}.mlp.c_fc.weight", TRANSPOSE),
        ("transformer.h.{b}.mlp.c_proj.weight", "transformer.h.{b}.mlp.c_proj.weight", TRANSPOSE),
        ("transformer.h.{b}.attn.bias", DROP),
        ("transformer.h.{b}.attn.masked_bias", DROP),
    ),
)

ALGPT2 = Dialect(config=ALGPT2Config.from_dict, tensors=())

DIALECTS = {"algpt2": ALGPT2, "gpt2": GPT2}
