"""Another depth at every training step, so that one model serves several depths."""

import functools

import numpy as np

from algpt2.configuration import ALGPT2Config
from algpt2.errors import InputError


class RandomDepth:
    """The depth of every training step: drawn uniformly from `least` to the depth of the model.

    It depends on the seed and the number of the step alone, so that a resumed run, all processes and both frameworks
    have the same depth at the same step.

    Args:
        config: `ALGPT2Config`, of a schedule that a named pattern makes.
        least: int. The smallest depth.
        seed: int.

    Raises:
        InputError: if the schedule cannot be followed to `least`, or there is nothing to draw.

    References:
        Depths drawn in training: LayerDrop (Fan et al., 2020, https://arxiv.org/abs/1909.11556) leaves out layers,
        Geiping et al., 2025 (https://arxiv.org/abs/2502.05171) draw the turns of a loop.

    Example:
        >>> depths = RandomDepth(ALGPT2Config(n_layer=6), least=2, seed=0)
        >>> [depths.config(step).n_layer for step in range(8)]
        [6, 5, 5, 6, 2, 2, 3, 6]
    """

    def __init__(self, config, least, seed):
        self.full, self.least, self.seed = config, least, seed
        self._at_depth = functools.cache(self._at_depth)
        if least >= config.n_layer:
            raise InputError(
                f"--random-depth {least}: the model has n_layer {config.n_layer}; give a smaller depth to draw from"
            )
        try:
            self._at_depth(least)
        except ValueError as error:
            raise InputError(f"--random-depth {least}: {error}") from error

    @property
    def mean(self):
        """float: the depth on average."""
        return (self.least + self.full.n_layer) / 2

    def config(self, step):
        """The `ALGPT2Config` of a step (int, 0 for the first): that of the model at the depth drawn."""
        # A spawned key, so that nothing else that is drawn from the seed goes with it.
        generator = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step,)))
        return self._at_depth(int(generator.integers(self.least, self.full.n_layer, endpoint=True)))

    def _at_depth(self, n_layer):
        return ALGPT2Config.from_dict(self.full.to_dict(), n_layer=n_layer)
