"""The teacher of a run in PyTorch."""

import torch

from algpt2.training.loss import SoftTargets
from algpt2_pt.cpu_kernels import use_fast_kernels
from algpt2_pt.devices import DTYPES
from algpt2_pt.models import language_model_class
from algpt2_pt.weights import to_torch


def make_teacher(run, device):
    """The teacher of a run, on a device.

    Args:
        run: `algpt2.training.run.Run`, which gives away its weights.
        device: `torch.device`.

    Returns:
        `Teacher`; `None` if the run has none.
    """
    taken, arguments = run.take_teacher(), run.arguments
    if not taken:
        return None
    config, weights = taken
    model = language_model_class(with_sop=False)(config)
    # A tied head is not among the weights.
    model.load_state_dict({name: to_torch(array) for name, array in weights.items()}, strict=False)
    dtype = DTYPES[arguments.teacher_precision or arguments.precision]
    return Teacher(use_fast_kernels(model).to(device, dtype), arguments.distill_weight, arguments.temperature)


class Teacher:
    """A language model whose distribution another one learns; it is not trained, nor a part of the one that is.

    Args:
        model: `ALGPT2LMHeadModel`, which computes in its own dtype, also under autocast.
        share: float. The part of the loss that is the teacher's.
        temperature: float. What the logits of both are divided by.

    Attributes:
        losses: float32 (2,), of the tokens since they were last taken: their cross-entropy, and the squared temperature
            times their divergence.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> config = ALGPT2Config.from_preset("algpt2-tiny")
        >>> model, teacher = (language_model_class(False)(config) for _ in range(2))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> teacher = Teacher(teacher, share=0.5, temperature=2.0)
        >>> loss = model(ids, labels=ids, **teacher.targets(ids)).loss
        >>> torch.allclose(loss, teacher.losses.mean())
        True
    """

    def __init__(self, model, share, temperature):
        self.model, self.share, self.temperature = model.eval().requires_grad_(False), share, temperature
        self.losses = torch.zeros(2, device=model.device)

    @torch.no_grad()
    def targets(self, input_ids, attention_mask=None):
        """What `forward` of a model with `algpt2_pt.loss.LossInChunks` takes to learn a batch from the teacher.

        Args:
            input_ids, attention_mask: int64 (batch, length).

        Returns:
            dict.
        """
        with torch.autocast(input_ids.device.type, enabled=False):
            outputs = self.model.transformer(input_ids, attention_mask=attention_mask, use_cache=False)
        return {"skip_logits": True, "teacher": self, "teacher_states": outputs.last_hidden_state}

    def soft_targets(self, states):
        """`SoftTargets` of the teacher's states, (tokens, E), on any device."""
        return SoftTargets(states, self.model.lm_head.weight.to(states.device), self.share, self.temperature)

    def add(self, losses):
        """Add to `losses`; several GPUs of one process do so at once."""
        self.losses.add_(losses.to(self.losses.device))
