"""Training with the matrices that an export in 4 bits will have."""

import contextlib

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from transformers import TrainerCallback

from algpt2.onnx.quantization import BLOCK_SIZES, quantized_names


class QuantizationAware(TrainerCallback):
    """Gives a step the gradients of matrices in 4 bits, and takes it from the exact ones.

    This is the straight-through estimator (Bengio et al., 2013, https://arxiv.org/abs/1308.3432), by which models are
    trained for the rounding that they will meet (Jacob et al., 2018, https://arxiv.org/abs/1712.05877).

    Args:
        model: `ALGPT2LMHeadModel`; its exact matrices are those of checkpoints.
    """

    def __init__(self, model):
        self.model, self.names = model, set(quantized_names(model.config))
        self.exact = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.round()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.restore()

    @torch.no_grad()
    def round(self):
        """Round the matrices, and keep the exact ones."""
        for matrix in self._matrices():
            self.exact.append(matrix.clone())
            matrix.copy_(rounded(matrix))

    @torch.no_grad()
    def restore(self):
        """Take the exact matrices again."""
        for matrix, exact in zip(self._matrices(), self.exact, strict=True):
            matrix.copy_(exact)
        self.exact = []

    @contextlib.contextmanager
    def applied(self):
        """A context in which the matrices are rounded."""
        self.round()
        try:
            yield
        finally:
            self.restore()

    def rounded_state(self, state):
        """A state dict, str to tensor, with rounded matrices."""
        return {**state, **{name: rounded(state[name]) for name in self.names}}

    def _matrices(self):
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                # An evaluation leaves matrices gathered, which would be taken for those that are trained.
                module.reshard()
        matrices = [parameter for name, parameter in self.model.named_parameters() if name in self.names]
        # FSDP has the rows of a matrix on several devices.
        return [matrix.to_local() if hasattr(matrix, "to_local") else matrix for matrix in matrices]


def rounded(matrix):
    """A matrix in 4 bits, at the scales at which the largest number of a block is just not cut off.

    Args:
        matrix: float (rows, columns).

    Returns:
        tensor of the same shape and type, in which `algpt2.onnx.quantization.quantize_blocks` finds the same levels.

    Example:
        >>> rounded(torch.tensor([[-8.0, 0.4, 3.3, 7.9]])).tolist()
        [[-8.0, 0.0, 3.0, 7.0]]
    """
    size, half = BLOCK_SIZES[4], 8
    columns = matrix.shape[1]
    blocks = pad(matrix, (0, -columns % size)).unflatten(1, (-1, size))
    least, most = blocks.aminmax(dim=-1, keepdim=True)
    scales = torch.where(most > -least, most, least) / -half
    levels = (blocks / scales.where(scales != 0, 1)).round_().clamp_(-half, half - 1)
    return levels.mul_(scales).flatten(1)[:, :columns]
