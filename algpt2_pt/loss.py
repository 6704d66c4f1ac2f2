"""The loss of a language model in chunks of tokens, which never holds the logits of all of them."""

import torch
from torch.autograd.function import once_differentiable

from algpt2.training.loss import IGNORED, LOGITS_IN_CHUNK, SoftTargets, tokens_in_chunk
from algpt2_pt.cpu_kernels import multiply_transposed

NO_TEACHER = SoftTargets(None, None, share=0.0, temperature=1.0)


class LossInChunks:
    """Mixin of a model: computes its loss in chunks: with `skip_logits=True` as a keyword of `forward`.

    With what `algpt2_pt.distillation.Teacher.targets` gives besides it learns the distribution of a teacher, too.
    """

    def predict(
        self,
        states,
        labels=None,
        logits_to_keep=0,
        skip_logits=False,
        num_items_in_batch=None,
        teacher=None,
        teacher_states=None,
        **kwargs,
    ):
        """As `ALGPT2LMHeadModel.predict`; with `skip_logits` the logits are `None`, and take no memory."""
        if labels is None or not skip_logits:
            return super().predict(states, labels, logits_to_keep, num_items_in_batch=num_items_in_batch, **kwargs)
        states = states[:, :-1].flatten(0, 1)
        labels = labels[:, 1:].flatten().to(states.device)
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        # Without a token that counts the loss is 0, not NaN.
        count = torch.as_tensor(count, device=states.device).clamp(min=1)
        if teacher is None:
            return linear_cross_entropy(states, self.lm_head.weight, labels) / count, None
        soft = teacher.soft_targets(teacher_states[:, :-1].flatten(0, 1))
        loss, parts = linear_distillation(states, self.lm_head.weight, labels, soft)
        teacher.add(parts / count)
        return loss / count, None


def linear_cross_entropy(states, weight, labels, logits_in_chunk=None):
    """The sum of the cross-entropies of the labels and softmax(states weightᵀ), chunk by chunk.

    The gradients are computed with the loss, so that no chunk is computed twice; they cannot be differentiated once
    more. PyTorch's own `torch.nn.functional.linear_cross_entropy` rounds the loss of half-precision states to half
    precision.

    Args:
        states: float (tokens, E).
        weight: float (V, E). The products are computed in the dtype of `states`, or of autocast, the rest in float32
            at least.
        labels: int64 (tokens,), -100 where ignored.
        logits_in_chunk: int, as in `algpt2.training.loss.tokens_in_chunk`; `None` means that of the device.

    Returns:
        scalar, float32 at least, in nats.

    Example:
        >>> loss = linear_cross_entropy(torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([0, 3, -100]))
        >>> round(loss.item(), 4)  # 2 log 4
        2.7726
    """
    return _in_chunks(states, weight, labels, logits_in_chunk)[0]


def linear_distillation(states, weight, labels, soft, logits_in_chunk=None):
    """The loss of Hinton et al.: (1 - share) x cross-entropy + share x T² x KL(teacher || model), chunk by chunk.

    Args:
        states, weight, labels: as in `linear_cross_entropy`.
        soft: `algpt2.training.loss.SoftTargets`. T is its temperature, which divides the logits on both sides of the
            divergence; that is summed over the labels that count.
        logits_in_chunk: as in `linear_cross_entropy`, those of both models.

    Returns:
        tuple of the loss, a scalar, and (2,) without gradients, the cross-entropy and T² x KL; sums over the tokens, in
        nats, float32 at least.

    References:
        Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> states, weight, labels = torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([0, 3, -100])
        >>> soft = SoftTargets(torch.zeros(3, 5), torch.ones(4, 5), share=0.25, temperature=2.0)
        >>> loss, parts = linear_distillation(states, weight, labels, soft)
        >>> round(loss.item(), 4), parts[1].item()  # the teacher says the same
        (2.0794, 0.0)
    """
    return _in_chunks(states, weight, labels, logits_in_chunk, soft)


def _in_chunks(states, weight, labels, logits, soft=None):
    device = states.device.type
    logits = logits or LOGITS_IN_CHUNK["cpu" if device == "cpu" else "gpu"]
    rows = tokens_in_chunk(*weight.shape, logits // 2 if soft else logits)
    if not torch.is_grad_enabled():
        states, weight = states.detach(), weight.detach()
    if torch.is_autocast_enabled(device) and states.dtype == torch.float32:
        states = states.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        return _LinearLoss.apply(states, weight, labels, rows, *(soft or NO_TEACHER))


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, states, weight, labels, rows, teacher_states, teacher_weight, share, temperature):
        dtype = torch.promote_types(states.dtype, torch.float32)
        cross_entropy, divergence = states.new_zeros((), dtype=dtype), states.new_zeros((), dtype=dtype)
        needs_states, needs_weight, *_ = ctx.needs_input_grad
        state_gradients = []
        # Transposed, since the products that add to it take twice as long the other way round.
        transposed_gradient = weight.new_zeros(weight.shape[::-1], dtype=dtype) if needs_weight else None
        matrix = weight.to(states.dtype)
        teacher_parts = teacher_matrix = None
        if teacher_states is not None:
            teacher_parts = iter(teacher_states.split(rows))
            teacher_matrix = teacher_weight.to(teacher_states.dtype)
        for part, targets in zip(states.split(rows), labels.split(rows), strict=True):
            logits = multiply_transposed(part, matrix)
            counted = (targets != IGNORED).to(dtype).unsqueeze(1)
            targets = targets.masked_fill(targets == IGNORED, 0).unsqueeze(1)
            log_probabilities = torch.log_softmax(logits, dim=-1, dtype=dtype)
            cross_entropy -= (log_probabilities.gather(1, targets) * counted).sum()
            if needs_states or needs_weight:
                gradient = log_probabilities.exp_().scatter_add_(1, targets, -torch.ones_like(counted)).mul_(counted)
            if teacher_parts:
                teacher_logits = multiply_transposed(next(teacher_parts), teacher_matrix)
                losses, soft_gradient = _softened(logits.to(dtype), teacher_logits.to(dtype), temperature)
                divergence += (losses * counted).sum()
                if needs_states or needs_weight:
                    gradient.mul_(1 - share).add_(soft_gradient.mul_(counted), alpha=share)
            if needs_states or needs_weight:
                gradient = gradient.to(states.dtype)
            if needs_states:
                state_gradients.append(multiply_transposed(gradient, matrix.t()))
            if needs_weight:
                transposed_gradient += multiply_transposed(part.t(), gradient.t())
        ctx.save_for_backward(torch.cat(state_gradients) if state_gradients else None, transposed_gradient)
        ctx.weight_dtype = weight.dtype
        parts = torch.stack((cross_entropy, divergence))
        ctx.mark_non_differentiable(parts)
        return (1 - share) * cross_entropy + share * divergence, parts

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream, _):
        # Multiplied in float32: `upstream` rounded to half precision would scale all gradients by its error.
        state_gradient, transposed_gradient = ctx.saved_tensors
        if state_gradient is not None:
            state_gradient = (state_gradient * upstream.view(1, 1)).to(state_gradient.dtype)
        weight_gradient = None
        if transposed_gradient is not None:
            # In the order of the weight, at once: in another it would be copied once more.
            weight_gradient = transposed_gradient.new_empty(transposed_gradient.shape[::-1])
            torch.mul(transposed_gradient.t(), upstream, out=weight_gradient)
            weight_gradient = weight_gradient.to(ctx.weight_dtype)
        return state_gradient, weight_gradient, *(None,) * 6


def _softened(logits, teacher_logits, temperature):
    """T² KL(teacher || model), (rows, 1), and its gradient with the logits, (rows, V); in the place of the logits."""
    model = torch.log_softmax(logits.div_(temperature), dim=-1)
    teacher = torch.log_softmax(teacher_logits.div_(temperature), dim=-1)
    probabilities = teacher.exp()
    losses = (teacher.sub_(model) * probabilities).sum(1, keepdim=True) * temperature**2
    return losses, model.exp_().sub_(probabilities).mul_(temperature)
