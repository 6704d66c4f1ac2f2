"""The configuration of an ALGPT2 model, its layer schedules and its presets.

This file travels with every saved model, as configuration_algpt2.py, and imports nothing of this project.
"""

import contextlib
import math
import os
import shutil
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# The activations that both frameworks compute alike; the names are those of transformers.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "sigmoid", "silu", "swish", "tanh")

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.0)

# The code that a saved model carries, so that it loads without this project by `trust_remote_code=True`, and where to
# find it; in a saved model, both files lie side by side.
CODE_FILES = {
    "configuration_algpt2.py": (Path(__file__),),
    "modeling_algpt2.py": (
        Path(__file__).with_name("modeling_algpt2.py"),
        Path(__file__).parents[1] / "algpt2_pt" / "modeling_algpt2.py",
    ),
}
AUTO_MAP = {
    "AutoConfig": "configuration_algpt2.ALGPT2Config",
    "AutoModel": "modeling_algpt2.ALGPT2Model",
    "AutoModelForCausalLM": "modeling_algpt2.ALGPT2LMHeadModel",
    "AutoModelForPreTraining": "modeling_algpt2.ALGPT2ForPreTraining",
    "AutoModelForSequenceClassification": "modeling_algpt2.ALGPT2ForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_algpt2.ALGPT2ForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_algpt2.ALGPT2ForQuestionAnswering",
}

# The most depths of a schedule, and the largest size of anything: those of a damaged file would take all memory.
MOST_LAYERS, LARGEST_SIZE = 10_000, 2**31 - 1

PATTERNS = ("full", "none", "sequence:K", "cycle:K", "cycle_rev:K", "sandwich", "middle_cycle:P,K,C")


def layer_schedule(pattern, n_layer):
    """The block applied at each depth under a named sharing pattern.

    Args:
        pattern: str. `"full"` (one block, ALBERT's default), `"none"` (a block for every depth, GPT-2),
            `"sequence:K"` (K blocks, each repeated in place: ALBERT's groups), `"cycle:K"` (K blocks in turn),
            `"cycle_rev:K"` (a cycle whose last round runs backwards), `"sandwich"` (the first and the last depth have
            blocks of their own, all others share one) or `"middle_cycle:P,K,C"` (P blocks of the first depths, K blocks
            in turn, C blocks of the last depths: prelude, loop and coda).
        n_layer: int. The number of depths.

    Returns:
        list of int of length `n_layer`: the block indices.

    Raises:
        ValueError: for an unknown pattern, or one that does not fit `n_layer`.

    References:
        ALBERT (Lan et al., 2020, https://arxiv.org/abs/1909.11942); sequence, cycle and cycle_rev: Takase and
        Kiyono, 2021 (https://arxiv.org/abs/2104.06022); sandwich: Subformer (Reid et al., 2021,
        https://arxiv.org/abs/2101.00234); middle_cycle: Mixture-of-Recursions (Bae et al., 2025,
        https://arxiv.org/abs/2507.10524), which has P = C = 1; prelude and coda of any size: Geiping et al., 2025
        (https://arxiv.org/abs/2502.05171).

    Example:
        >>> layer_schedule("cycle_rev:3", 12)
        [0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 1, 0]
        >>> layer_schedule("middle_cycle:1,2,1", 8)
        [0, 1, 2, 1, 2, 1, 2, 3]
    """
    _require_positive_int("n_layer", n_layer, MOST_LAYERS)
    if pattern == "full":
        return [0] * n_layer
    if pattern == "none":
        return list(range(n_layer))
    if pattern == "sandwich" and n_layer < 3:
        raise ValueError(f"pattern 'sandwich' needs at least 3 layers, n_layer is {n_layer}")
    name, _, text = ("middle_cycle:1,1,1" if pattern == "sandwich" else str(pattern)).partition(":")
    counts = text.split(",")
    count_of = {"sequence": 1, "cycle": 1, "cycle_rev": 1, "middle_cycle": 3}
    if len(counts) != count_of.get(name) or not all(count.isdecimal() for count in counts):
        raise ValueError(f"unknown sharing pattern {pattern!r}; choose one of {', '.join(PATTERNS)}")
    prelude, blocks, coda = map(int, counts if name == "middle_cycle" else (0, *counts, 0))
    total = prelude + blocks + coda
    if blocks < 1 or total > n_layer:
        allowed = f"P + K + C is at most {n_layer}, and K at least 1" if prelude or coda else f"K is 1 to {n_layer}"
        raise ValueError(f"pattern {pattern!r} asks for {total} blocks; with n_layer {n_layer} {allowed}")
    if name == "sequence":
        return [depth * blocks // n_layer for depth in range(n_layer)]
    turns = [depth % blocks for depth in range(n_layer - prelude - coda)]
    if name == "cycle_rev":
        start = (math.ceil(n_layer / blocks) - 1) * blocks
        turns[start:] = [blocks - 1 - turn for turn in turns[start:]]
    return [*range(prelude), *(prelude + turn for turn in turns), *range(total - coda, total)]


def schedule_pattern(schedule):
    """The named pattern that makes a layer schedule: the inverse of `layer_schedule`.

    Where several patterns make it, the name is the first of `PATTERNS`: one block is always `"full"`, a block for every
    depth always `"none"`, and `"middle_cycle"` is only what has no other name. A loop that has just begun may have one:
    `[0, 1, 2, 2]` is `"cycle_rev:3"`, which has another shape than `"middle_cycle:2,1,0"` where it is deeper.

    Args:
        schedule: list of int, the block applied at each depth.

    Returns:
        str, or `None` for a schedule that no pattern makes.

    Example:
        >>> schedule_pattern([0, 1, 2, 0, 1, 2, 2, 1, 0])
        'cycle_rev:3'
    """
    blocks, n_layer = max(schedule) + 1, len(schedule)
    if not 1 <= blocks <= n_layer:
        return None
    names = ["full", "none", *(f"{name}:{blocks}" for name in ("sequence", "cycle", "cycle_rev"))]
    if n_layer >= 3:
        names.append("sandwich")
    # Where the numbers first go back is the end of the first turn of a loop, and the number there its start.
    turn = next((depth for depth, block in enumerate(schedule) if block != depth), 0)
    if 0 <= schedule[turn] < turn:
        names.append(f"middle_cycle:{schedule[turn]},{turn - schedule[turn]},{blocks - turn}")
    return next((name for name in names if layer_schedule(name, n_layer) == schedule), None)


def schedule_at_depth(schedule, n_layer):
    """A layer schedule of the same pattern and the same blocks with another number of depths.

    Args:
        schedule: list of int, the block applied at each depth.
        n_layer: int. The new number of depths.

    Returns:
        list of int of length `n_layer`.

    Raises:
        ValueError: if the schedule follows no pattern, or the pattern needs other blocks at that depth.

    Example:
        >>> schedule_at_depth([0, 0, 1, 1], 6)
        [0, 0, 0, 1, 1, 1]
    """
    if n_layer == len(schedule):
        return schedule
    pattern = schedule_pattern(schedule)
    if pattern in (None, "none"):
        reason = "follows no named pattern" if pattern is None else "has a block for every depth"
        raise ValueError(
            f"layer_schedule {_shown(schedule)} {reason}, so n_layer {n_layer} does not say which blocks to apply; "
            "leave n_layer as it is, or give a model a whole layer_schedule"
        )
    return layer_schedule(pattern, n_layer)


def depth_sources(schedule, trained):
    """The depth of a trained schedule whose own parameters each depth of another schedule takes.

    Of the depths at which the same block was trained, it is the nearest in relative depth, 0 for the first and 1 for
    the last; of two as near, the lower.

    Args:
        schedule: list of int, the block applied at each depth.
        trained: list of int, the schedule that the parameters belong to.

    Returns:
        list of int of the length of `schedule`.

    Example:
        >>> depth_sources([0, 0, 0], [0, 0, 0, 0, 0, 0])
        [0, 2, 5]
    """
    if schedule == trained:
        return list(range(len(schedule)))
    sources = []
    for depth, block in enumerate(schedule):
        candidates = [source for source, other in enumerate(trained) if other == block]
        # Both relative depths times both last depths, so that ties are exact.
        here, unit = depth * (len(trained) - 1), len(schedule) - 1
        sources.append(min(candidates, key=lambda source: abs(source * unit - here)))
    return sources


# The fields that give parameters to single depths, with what gives none.
WITHOUT_DEPTHS = {"depth_norms": False, "depth_biases": False, "depth_lora_rank": 0}
# What differs between the configurations of one model at several depths.
DEPTH_FIELDS = ("n_layer", "layer_schedule", "trained_schedule")


@contextlib.contextmanager
def at_depth_of(config, other):
    """A context in which a configuration has the depth of another one, and so do the models that read it.

    A PyTorch model reads its configuration when it computes, a Keras model when its functions are traced.

    Args:
        config: `ALGPT2Config`, of a model.
        other: `ALGPT2Config`, as `from_dict` makes it of `config` with another `n_layer`.

    Example:
        >>> config = ALGPT2Config(n_layer=6)
        >>> with at_depth_of(config, ALGPT2Config(n_layer=2)):
        ...     config.layer_schedule
        [0, 0]
        >>> config.n_layer
        6
    """
    own = {field: getattr(config, field) for field in DEPTH_FIELDS}
    try:
        for field in DEPTH_FIELDS:
            setattr(config, field, getattr(other, field))
        yield
    finally:
        for field, value in own.items():
            setattr(config, field, value)


@strict
class ALGPT2Config(PreTrainedConfig):
    """The configuration of an ALGPT2 model; its defaults are the preset `algpt2`.

    Args:
        vocab_size: int. The number of tokens, V.
        n_positions: int. The longest sequence, P.
        n_embd: int. The width of the hidden states, H.
        n_layer: int. The number of depths; defaults to the length of `layer_schedule`, or to 12.
        n_head: int. The number of attention heads; divides `n_embd`.
        n_inner: int. The width of the feed-forward layer; `None` means `4 * n_embd`.
        embedding_size: int. The width of the embeddings, E; `None` means `n_embd`, not factorized.
        layer_schedule: list of int. The block applied at each depth, see `algpt2.layer_schedule`; `None` means one
            block shared by all depths.
        depth_norms: bool. Whether each depth has layer normalizations of its own, ln_1 and ln_2. This and the next two
            are the freedom that depths keep within sharing, of blocks that are applied more than once.
        depth_biases: bool. Whether each depth has biases of its own for the four linear layers of its block.
        depth_lora_rank: int. The rank of what each depth adds to the four matrices of its block; 0 for nothing.
        trained_schedule: list of int. The layer schedule whose depths the parameters of single depths belong to, where
            a model is run at another depth, see `algpt2.configuration.depth_sources`; `None` means `layer_schedule`.
        residual_multiplier: float. What the outputs of both residual branches are multiplied by; for L blocks, each
            applied N times, 1 / (N sqrt(L)) is proposed.
        tie_projections: bool. Whether `project_out` uses the matrix of `project_in`, transposed.
        activation_function: str. One of `algpt2.configuration.ACTIVATIONS`.
        resid_pdrop: float. The dropout on both residual branches.
        embd_pdrop: float. The dropout on the embeddings.
        attn_pdrop: float. The dropout on the attention weights.
        layer_norm_epsilon: float. The epsilon of the layer normalizations.
        initializer_range: float. The standard deviation of the initial weights.
        use_cache: bool. Whether to return the keys and values of each depth.
        bos_token_id, eos_token_id, pad_token_id: int. Special tokens of the vocabulary.
        tie_word_embeddings: bool. Whether the output embedding is the input embedding.

    Raises:
        ValueError: for a wrong value; the message names the field.

    References:
        What belongs to a depth: Relaxed Recursive Transformers (Bae et al., 2025, https://arxiv.org/abs/2410.20672).
        The residual multiplier: https://arxiv.org/abs/2606.18524.

    Example:
        >>> ALGPT2Config(n_embd=256, n_head=4, layer_schedule=[0, 0, 1, 1]).n_layer
        4
    """

    model_type = "algpt2"
    keys_to_ignore_at_inference = ["past_key_values", "lm_loss", "sop_loss"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int | None = None
    n_head: int = 12
    n_inner: int | None = None
    embedding_size: int | None = 128
    layer_schedule: list[int] | None = None
    depth_norms: bool = False
    depth_biases: bool = False
    depth_lora_rank: int = 0
    trained_schedule: list[int] | None = None
    residual_multiplier: float | int = 1.0
    tie_projections: bool = False
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        if self.n_layer is None:
            self.n_layer = 12 if self.layer_schedule is None else len(self.layer_schedule)
        if self.layer_schedule is None:
            self.layer_schedule = layer_schedule("full", self.n_layer)
        if self.trained_schedule == self.layer_schedule:
            self.trained_schedule = None
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Raise a ValueError that names the first field with a wrong value."""
        _require_positive_int("n_layer", self.n_layer, MOST_LAYERS)
        for field in ("vocab_size", "n_positions", "n_embd", "n_head"):
            _require_positive_int(field, getattr(self, field))
        for field in ("n_inner", "embedding_size"):
            if getattr(self, field) is not None:
                _require_positive_int(field, getattr(self, field))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be divisible by n_head, but n_embd is {self.n_embd}, n_head {self.n_head}")
        if self.activation_function not in ACTIVATIONS:
            raise ValueError(
                f"activation_function {self.activation_function!r} is unknown; choose one of {', '.join(ACTIVATIONS)}"
            )
        for field in DROPOUTS:
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 0 and below 1, but is {getattr(self, field)}")
        for field in ("layer_norm_epsilon", "initializer_range", "residual_multiplier"):
            # Outside of these, float32 has 0 or infinity for it or its products.
            if not 1e-30 <= getattr(self, field) <= 1e30:
                raise ValueError(
                    f"{field} must be positive and finite, 1e-30 to 1e30, but is {str(getattr(self, field))[:40]}"
                )
        if len(self.layer_schedule) != self.n_layer:
            raise ValueError(
                f"layer_schedule has {len(self.layer_schedule)} entries, but n_layer is {self.n_layer}; "
                "give one block index for each depth"
            )
        blocks = set(self.layer_schedule)
        if min(blocks) != 0 or len(blocks) != self.n_block:
            raise ValueError(
                f"layer_schedule must use every block from 0 to {max(self.layer_schedule)} "
                f"without gaps, but is {_shown(self.layer_schedule)}"
            )
        if isinstance(self.depth_lora_rank, bool) or not 0 <= self.depth_lora_rank <= self.n_embd:
            raise ValueError(f"depth_lora_rank must be 0 to n_embd {self.n_embd}, but is {self.depth_lora_rank!r}")
        trained = self.trained_schedule
        if trained is not None and (len(trained) > MOST_LAYERS or set(trained) != blocks):
            raise ValueError(
                f"trained_schedule must use the blocks of layer_schedule, 0 to {self.n_block - 1}, in at most "
                f"{MOST_LAYERS} depths, but is {_shown(trained)}"
            )
        if self.tie_projections and not self.is_factorized:
            raise ValueError("tie_projections needs projections: set embedding_size, or leave tie_projections False")

    @property
    def n_block(self):
        """int: the number of blocks that the model owns."""
        return max(self.layer_schedule) + 1

    @property
    def is_factorized(self):
        """bool: whether the embeddings are projected to and from the hidden states."""
        return self.embedding_size is not None

    @property
    def embedding_width(self):
        """int: the width of the embedding matrices, E."""
        return self.n_embd if self.embedding_size is None else self.embedding_size

    @property
    def inner_width(self):
        """int: the width of the feed-forward layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def linear_layers(self):
        """dict of str to tuple of int: the inputs and outputs of the four linear layers of a block."""
        return {
            "attn.c_attn": (self.n_embd, 3 * self.n_embd),
            "attn.c_proj": (self.n_embd, self.n_embd),
            "mlp.c_fc": (self.n_embd, self.inner_width),
            "mlp.c_proj": (self.inner_width, self.n_embd),
        }

    @property
    def has_depth_parameters(self):
        """bool: whether something belongs to the single depths of a shared block."""
        return any(getattr(self, field) for field in WITHOUT_DEPTHS)

    def depths_of(self, block):
        """list of int: the depths that have parameters of their own besides those of this block.

        They are counted in `trained_schedule`; a block that is applied once keeps all to itself.

        Example:
            >>> ALGPT2Config(layer_schedule=[0, 1, 1, 2], depth_norms=True).depths_of(1)
            [1, 2]
        """
        trained = self.trained_schedule or self.layer_schedule
        depths = [depth for depth, other in enumerate(trained) if other == block]
        return depths if self.has_depth_parameters and len(depths) > 1 else []

    def depth_sources(self):
        """list of int or None: for each depth, whose of `depths_of` its block it takes.

        Example:
            >>> ALGPT2Config(layer_schedule=[0, 1, 1, 2], depth_norms=True).depth_sources()
            [None, 1, 2, None]
        """
        if not self.has_depth_parameters:
            return [None] * len(self.layer_schedule)
        sources = depth_sources(self.layer_schedule, self.trained_schedule or self.layer_schedule)
        owning = {block for block in range(self.n_block) if self.depths_of(block)}
        return [source if block in owning else None for block, source in zip(self.layer_schedule, sources, strict=True)]

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """A configuration from a dict; keyword arguments replace its values before they are checked.

        A schedule made by a named pattern keeps that pattern and its blocks under another `n_layer`, as
        `algpt2.configuration.schedule_at_depth` says; any other has to be given anew. What belongs to single depths
        stays with the stored schedule, as `trained_schedule`; give that as `None` for a model that starts anew.

        Raises:
            ValueError: for a wrong value, or an `n_layer` that the schedule cannot follow.

        Example:
            >>> cycle = ALGPT2Config(layer_schedule=[0, 1, 0, 1])
            >>> ALGPT2Config.from_dict(cycle.to_dict(), n_layer=6).layer_schedule
            [0, 1, 0, 1, 0, 1]
        """
        stored = dict(config_dict)
        kwargs = {cls.attribute_map.get(key, key): value for key, value in kwargs.items()}
        replaced = {key: kwargs.pop(key) for key in list(kwargs) if key in cls.__dataclass_fields__ and key != "dtype"}
        if "layer_schedule" in replaced:
            stored.pop("n_layer", None)
        elif replaced.get("n_layer") is not None and stored.get("layer_schedule") is not None:
            schedule, trained = (
                cls(layer_schedule=stored.get(field)).layer_schedule for field in ("layer_schedule", "trained_schedule")
            )
            # Of a few depths each may have a block of its own, and the schedule of training says more.
            if stored.get("trained_schedule") and _is_at_depth(schedule, trained):
                schedule = trained
            stored["layer_schedule"] = schedule_at_depth(schedule, replaced["n_layer"])
        result = {**stored, **replaced}
        has_depths = any(result.get(field) for field in WITHOUT_DEPTHS)
        if has_depths and result.get("trained_schedule") is None and "trained_schedule" not in replaced:
            former = config_dict.get("layer_schedule")
            result["trained_schedule"] = former if former != result.get("layer_schedule") else None
        return super().from_dict(result, **kwargs)

    def save_pretrained(self, save_directory, **kwargs):
        """Write config.json, and the code that loads the model where this project is not installed.

        Args:
            save_directory: str or path; made if it is not there.
            **kwargs: as in `transformers.PreTrainedConfig.save_pretrained`.

        Example:
            >>> ALGPT2Config().save_pretrained("model")
            >>> sorted(os.listdir("model"))
            ['config.json', 'configuration_algpt2.py', 'modeling_algpt2.py']
        """
        self.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)
        for name, places in CODE_FILES.items():
            source = next((place for place in places if place.is_file()), None)
            target = Path(save_directory) / name
            if source and not (target.exists() and os.path.samefile(source, target)):
                shutil.copyfile(source, target)

    @classmethod
    def from_preset(cls, name, **overrides):
        """A named configuration.

        Args:
            name: str. One of `algpt2.PRESETS`.
            **overrides: fields to set otherwise.

        Raises:
            ValueError: for an unknown name.

        Example:
            >>> ALGPT2Config.from_preset("algpt2-medium").n_embd
            1024
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls.from_dict(PRESETS[name], **{"trained_schedule": None, **overrides})


PRESETS = {
    "gpt2": {"embedding_size": None, "layer_schedule": list(range(12)), "bos_token_id": 50256, "eos_token_id": 50256},
    "algpt2": {},
    # The relaxations of docs/results.md at 12 x 768, and a factorized embedding.
    "algpt2-relaxed": {
        "depth_norms": True,
        "depth_biases": True,
        "depth_lora_rank": 16,
        "residual_multiplier": 1 / 12,
        **NO_DROPOUT,
    },
    "algpt2-no-dropout": NO_DROPOUT,
    "algpt2-factorized-256": {"embedding_size": 256},
    "algpt2-factorized-512": {"embedding_size": 512},
    "algpt2-medium": {"n_embd": 1024, "n_head": 16, "n_layer": 24},
    "algpt2-large": {"n_embd": 1280, "n_head": 20, "n_layer": 36},
    "algpt2-xl": {"n_embd": 1600, "n_head": 25, "n_layer": 48},
    "algpt2-tiny": {
        "vocab_size": 2048,
        "n_positions": 256,
        "n_embd": 128,
        "n_head": 4,
        "n_layer": 4,
        "embedding_size": 64,
        **NO_DROPOUT,
    },
}


def _is_at_depth(schedule, trained):
    """bool: whether a schedule is another at its depth, by the pattern of that."""
    try:
        return schedule_at_depth(trained, len(schedule)) == schedule
    except ValueError:
        return False


def _require_positive_int(field, value, most=LARGEST_SIZE):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{field} must be a positive integer, but is {value!r}")
    if value > most:
        raise ValueError(f"{field} must be at most {most}, but is {value}")


def _shown(schedule):
    """A schedule as it is shown in an error: of a long one, the start."""
    return str(schedule) if len(schedule) <= 100 else f"[{', '.join(map(str, schedule[:100]))}, ...]"
