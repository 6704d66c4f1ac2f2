"""What a dialect is: a table from the tensor names of one system to the canonical ones."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from algpt2.checkpoints.formats.lazy_tensor import join, lazy
from algpt2.checkpoints.weights import head_shapes, raise_for_faults, required_shapes, tensor_fault
from algpt2.errors import InputError


@dataclass(frozen=True)
class Layout:
    """How the values of a canonical weight lie in a tensor of another system.

    Args:
        shape: function from an `ALGPT2Config` and the canonical shape to the shape there.
        transposed: bool. Whether a matrix has its inputs first there.
    """

    shape: Callable
    transposed: bool = False

    def to_canonical(self, tensor, shape):
        """The tensor as the canonical weight of this shape."""
        return tensor.reshape(shape[::-1]).T if self.transposed else tensor.reshape(shape)

    def from_canonical(self, config, tensor):
        """The canonical weight as the tensor there."""
        shape = self.shape(config, tensor.shape)
        return (tensor.T if self.transposed else tensor).reshape(shape)


SAME = Layout(lambda config, shape: shape)
TRANSPOSED = Layout(lambda config, shape: shape[::-1], transposed=True)


@dataclass(frozen=True)
class Rule:
    """A row of a table.

    Args:
        theirs: str, or tuple of str for the parts of a weight that they keep apart. `{b}` stands for the number of a
            block and `{d}` for that of a depth; `{_b}` and `{_d}` for a number as Keras counts, nothing for the first,
            then `_1`, `_2`, ...
        ours: str. The canonical name.
        layout: `Layout`.
    """

    theirs: str | tuple
    ours: str
    layout: Layout = SAME

    def their_names(self, numbers):
        """list of str: the names there, for the numbers of what `{b}` and `{d}` stand for, a dict of str to int."""
        names = [self.theirs] if isinstance(self.theirs, str) else self.theirs
        for letter, number in numbers.items():
            suffix = f"_{number}" if number else ""
            names = [name.replace(f"{{{letter}}}", str(number)).replace(f"{{_{letter}}}", suffix) for name in names]
        return list(names)


@dataclass(frozen=True)
class Dialect:
    """How one system names its tensors.

    Args:
        name: str. The system.
        naming: str. That of its files, as in `algpt2.checkpoints.formats.Format`.
        matches: function from the content of config.json, a dict, and the names of the tensors, a set of str, to
            whether they are this system's.
        rules: tuple of `Rule`; canonical names that no rule mentions are used as they are.
        dropped: tuple of str, patterns of the names that have no counterpart here.
        block_numbers: function from an `ALGPT2Config` to the number that each block has there, a list of int; by
            default its own.
        depth_numbers: function from an `ALGPT2Config` and a block to a dict of the depths that have something of their
            own of that block to their numbers there.
    """

    name: str
    naming: str
    matches: Callable
    rules: tuple = ()
    dropped: tuple = ()
    block_numbers: Callable = field(default=lambda config: list(range(config.n_block)))
    depth_numbers: Callable = field(default=lambda config, block: {depth: depth for depth in config.depths_of(block)})

    def to_canonical(self, config, tensors, source="checkpoint"):
        """The weights by their canonical names and in the canonical layout.

        Args:
            config: `ALGPT2Config`.
            tensors: dict of str to `LazyTensor`, by the names there.
            source: str or path. Names the tensors in the error.

        Returns:
            dict of str to `LazyTensor`: all weights of the configuration, those of other heads if they are there, and
            `lm_head.weight` also where it is tied but stored a second time.

        Raises:
            InputError: lists everything missing, unexpected, misshapen or not of a float type, by the names there.
        """
        left = {name: tensor for name, tensor in tensors.items() if not self._is_dropped(name)}
        heads = head_shapes(config).values()
        optional = {"lm_head.weight": (config.vocab_size, config.embedding_width)}
        for head in heads:
            optional |= head
        present = {ours for ours in optional if any(name in left for name in self.their_names(config, ours))}
        required, weights, faults = required_shapes(config, present), {}, []
        for ours, shape in {**optional, **required}.items():
            rule, names = self._find(config, ours)
            part_shape = (shape[0] // len(names), *shape[1:])
            expected = rule.layout.shape(config, part_shape)
            if ours not in required and not any(name in left for name in names):
                continue
            faults += [f"missing: {name} {expected}" for name in names if name not in left]
            parts = {name: left.pop(name) for name in names if name in left}
            found = [fault for name, part in parts.items() if (fault := tensor_fault(name, part, expected))]
            faults += found
            if len(parts) == len(names) and not found:
                canonical = [rule.layout.to_canonical(part, part_shape) for part in parts.values()]
                weights[ours] = canonical[0] if len(names) == 1 else join(canonical)
        raise_for_faults([*faults, *(f"unexpected: {name} {tensor.shape}" for name, tensor in left.items())], source)
        incomplete = [head for head in heads if head.keys() & weights.keys() and not weights.keys() >= head.keys()]
        raise_for_faults([f"missing: one of {' and '.join(head)}" for head in incomplete], source)
        return weights

    def from_canonical(self, config, weights):
        """The tensors by the names and in the layout of this dialect.

        Args:
            config: `ALGPT2Config`.
            weights: dict of str to numpy array or `LazyTensor`, canonical.

        Returns:
            dict of str to `LazyTensor`.
        """
        tensors = {}
        for ours, weight in weights.items():
            rule, names = self._find(config, ours)
            rows = weight.shape[0] // len(names)
            for index, name in enumerate(names):
                part = lazy(weight).rows(index * rows, (index + 1) * rows) if len(names) > 1 else lazy(weight)
                tensors[name] = rule.layout.from_canonical(config, part)
        return tensors

    def their_names(self, config, ours):
        """list of str: what a canonical weight is called in this dialect."""
        return self._find(config, ours)[1]

    def _find(self, config, ours):
        for rule in self.rules:
            pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(rule.ours))
            match = re.fullmatch(pattern, ours)
            if match:
                numbers = {letter: int(number) for letter, number in match.groupdict().items()}
                if "d" in numbers:
                    numbers["d"] = self.depth_numbers(config, numbers["b"])[numbers["d"]]
                if "b" in numbers:
                    numbers["b"] = self.block_numbers(config)[numbers["b"]]
                return rule, rule.their_names(numbers)
        return Rule(ours, ours), [ours]

    def _is_dropped(self, name):
        return any(re.fullmatch(pattern, name) for pattern in self.dropped)


# What torch.compile, DDP, FSDP and activation checkpointing put before the names within what they wrap.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
BARE = re.compile(r"(wte|wpe|h|ln_f|project_in|project_out|expand_embeddings|projection_layer)\..*")


def is_wrapped(tensors):
    """bool: whether tensors, a dict, were saved from a model that torch.compile or DDP had wrapped."""
    return any(map(WRAPPERS.search, tensors))


def pytorch_names(tensors):
    """Tensors of a PyTorch model by the names that they have in a plain model with its head.

    Those of a wrapped model have more prefixes, and those of a bare transformer lack `transformer.`.

    Args:
        tensors: dict of str to tensor.

    Returns:
        dict of str to tensor.

    Raises:
        InputError: if a tensor is there both with and without a prefix.

    Example:
        >>> pytorch_names({"_orig_mod.h.0.ln_1.bias": 1, "_orig_mod.wte.weight": 2})
        {'transformer.h.0.ln_1.bias': 1, 'transformer.wte.weight': 2}
    """
    names = {name: WRAPPERS.sub("", name) for name in tensors}
    if any(name.startswith(("wte.", "wpe.", "h.", "ln_f.")) for name in names.values()):
        names = {name: f"transformer.{plain}" if BARE.match(plain) else plain for name, plain in names.items()}
    if len(set(names.values())) != len(tensors):
        raise InputError(
            "some tensors are there twice, with and without the prefix `transformer.`, `_orig_mod.` or `module.`"
        )
    return {names[name]: tensor for name, tensor in tensors.items()}
