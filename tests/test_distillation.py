"""The loss with a teacher: ten lines of numpy, whole logits of transformers' GPT-2, and no whole logits of ours."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import torch
from models import both_models, close, random_batch, relative_difference, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel

import algpt2_pt.distillation
import algpt2_pt.loss
import algpt2_tf.distillation
import algpt2_tf.loss
from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.training.loss import LOGITS_IN_CHUNK, SoftTargets
from algpt2_tf.loss import next_token_loss

V, E, TOKENS = 31, 5, 11
CONFIG = tiny_config(vocab_size=300)


def reference(states, weight, labels, soft):
    """The loss and its parts: Hinton et al. (2015), of whole logits."""

    def log_softmax(logits):
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    logits, teacher_logits = states @ weight.T, soft.states @ soft.weight.T
    losses = -log_softmax(logits)[np.arange(len(labels)), np.maximum(labels, 0)]
    model, teacher = log_softmax(logits / soft.temperature), log_softmax(teacher_logits / soft.temperature)
    divergences = soft.temperature**2 * (np.exp(teacher) * (teacher - model)).sum(-1)
    parts = np.array([losses[labels != -100].sum(), divergences[labels != -100].sum()])
    return (1 - soft.share) * parts[0] + soft.share * parts[1], parts


def in_pytorch(states, weight, labels, soft, logits):
    """The loss, its parts and its gradients."""
    inputs = [torch.tensor(array, requires_grad=True) for array in (states, weight)]
    soft = soft._replace(states=torch.tensor(soft.states), weight=torch.tensor(soft.weight))
    loss, parts = algpt2_pt.loss.linear_distillation(*inputs, torch.tensor(labels).long(), soft, logits)
    (3.0 * loss).backward()
    assert not parts.requires_grad
    return loss.item(), parts.numpy(), *(tensor.grad.numpy() / 3.0 for tensor in inputs)


def in_tensorflow(states, weight, labels, soft, logits):
    inputs = [tf.constant(states), tf.constant(weight)]
    soft = soft._replace(states=tf.constant(soft.states), weight=tf.constant(soft.weight))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss, parts = algpt2_tf.loss.linear_distillation(*inputs, tf.constant(labels), soft, logits)
        loss = 3.0 * loss
    return loss.numpy() / 3.0, parts.numpy(), *(gradient.numpy() / 3.0 for gradient in tape.gradient(loss, inputs))


def inputs(share=0.3, temperature=2.0, scale=1.0):
    draw = np.random.default_rng(0)
    labels = draw.integers(V, size=TOKENS, dtype=np.int32)
    labels[[0, 7]] = -100
    soft = SoftTargets(draw.normal(size=(TOKENS, 8)), draw.normal(size=(V, 8)), share, temperature)
    return draw.normal(size=(TOKENS, E)) * scale, draw.normal(size=(V, E)), labels, soft


@pytest.mark.parametrize("framework", [in_pytorch, in_tensorflow])
@pytest.mark.parametrize("logits", [1, 14 * V, 1000 * V], ids=["smallest", "uneven", "one chunk"])
@pytest.mark.parametrize(("share", "temperature"), [(0.3, 2.0), (1.0, 0.5)])
def test_the_loss_is_that_of_its_definition_and_so_is_the_gradient(framework, logits, share, temperature):
    states, weight, labels, soft = inputs(share, temperature)
    loss, parts, *gradients = framework(states, weight, labels, soft, logits)
    expected, expected_parts = reference(states, weight, labels, soft)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(parts, expected_parts, rtol=1e-12)
    draw, step = np.random.default_rng(1), 1e-5
    for index, gradient in enumerate(gradients):
        direction, moved = draw.normal(size=gradient.shape), [states, weight]
        values = []
        for sign in (1, -1):
            moved[index] = (states, weight)[index] + sign * step * direction
            values.append(reference(*moved, labels, soft)[0])
        np.testing.assert_allclose((gradient * direction).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("framework", [in_pytorch, in_tensorflow])
def test_large_logits_do_not_overflow(framework):
    states, weight, labels, soft = inputs(scale=2000.0)
    loss, _, *gradients = framework(states, weight, labels, soft, 1)
    np.testing.assert_allclose(loss, reference(states, weight, labels, soft)[0], rtol=1e-12)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_rounds_the_products_only():
    states, weight, labels, soft = inputs()
    half, matrix = torch.tensor(states).bfloat16(), torch.tensor(weight).bfloat16()
    rounded = [tensor.double().numpy() for tensor in (half, matrix)]
    precise = soft._replace(states=torch.tensor(soft.states).float(), weight=torch.tensor(soft.weight).float())
    loss, parts = algpt2_pt.loss.linear_distillation(half, matrix, torch.tensor(labels).long(), precise)
    in_keras = soft._replace(states=tf.constant(soft.states, "float32"), weight=tf.constant(soft.weight, "float32"))
    tensors = [tf.cast(tf.constant(array), "bfloat16") for array in rounded]
    found, _ = algpt2_tf.loss.linear_distillation(*tensors, tf.constant(labels), in_keras)
    assert (loss.dtype, parts.dtype, found.dtype) == (torch.float32, torch.float32, tf.float32)
    expected = reference(*rounded, labels, soft)[0]
    for value in (loss.item(), found.numpy()):
        assert 1e-7 < abs(value / expected - 1) < 1e-2


ARGUMENTS = SimpleNamespace(
    distill_weight=0.25, temperature=2.0, teacher_precision=None, precision="fp32", teacher="teacher"
)


@pytest.fixture
def gpt2(tmp_path):
    """transformers' GPT-2 with dropout, and a function that gives it as a run does."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=40, n_embd=18, n_layer=3, n_head=2, initializer_range=0.5)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    return model, SimpleNamespace(
        take_teacher=lambda: (checkpoint.config, checkpoint.read_weights()), arguments=ARGUMENTS
    )


def batch(config, length=12):
    """Ids and labels of which some are ignored, int64 (3, length)."""
    ids, mask = random_batch(config, length)
    return torch.tensor(ids), torch.tensor(np.where(mask == 1, ids, -100))


def test_any_dialect_teaches_and_the_gradients_are_those_of_transformers(gpt2):
    expected_teacher, run = gpt2
    keras_model, model = both_models(CONFIG, "float32")
    ids, labels = batch(model.config)
    logits, teacher_logits = model(ids).logits[:, :-1].double(), expected_teacher(ids).logits[:, :-1].double()
    targets = labels[:, 1:]
    cross_entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    divergences = torch.nn.functional.kl_div(
        *((tensor / 2.0).log_softmax(-1) for tensor in (logits, teacher_logits.detach())),
        log_target=True,
        reduction="none",
    )
    divergence = 4.0 * divergences.sum(-1)[targets != -100].mean()
    (0.75 * cross_entropy + 0.25 * divergence).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}

    teacher = algpt2_pt.distillation.make_teacher(run, torch.device("cpu"))
    model.zero_grad()
    model.train()
    loss = model(ids, labels=labels, **teacher.targets(ids)).loss
    loss.backward()
    np.testing.assert_allclose(teacher.losses, [cross_entropy.item(), divergence.item()], rtol=1e-5)
    np.testing.assert_allclose(loss.item(), 0.75 * cross_entropy.item() + 0.25 * divergence.item(), rtol=1e-5)
    assert all(close(parameter.grad, expected[name], 1e-4) for name, parameter in model.named_parameters())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())

    teacher = algpt2_tf.distillation.make_teacher(run)
    inputs = {"token_ids": tf.constant(ids.numpy(), "int32"), "padding_mask": tf.ones(ids.shape, "int32")}
    with tf.GradientTape() as tape:
        states, soft = keras_model.backbone(inputs, training=True), teacher.soft_targets(inputs)
        found, parts = next_token_loss(keras_model, states, tf.constant(labels.numpy(), "int32"), soft)
    count = (targets != -100).sum().item()
    np.testing.assert_allclose(parts / count, [cross_entropy.item(), divergence.item()], rtol=1e-5)
    embedding = keras_model.backbone.token_embedding.embeddings
    gradient = tf.convert_to_tensor(tape.gradient(found, embedding)) / count
    assert relative_difference(expected["transformer.wte.weight"], gradient) < 1e-4
    # Neither dropout nor the batch it is in changes what a teacher says.
    assert np.array_equal(teacher.soft_targets(inputs).states, soft.states)


class Largest(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return made


def test_the_logits_of_a_batch_are_never_there_at_once(gpt2, monkeypatch):
    _, run = gpt2
    keras_model, model = both_models(CONFIG, "float32")
    ids, labels = (tensor.repeat(20, 1) for tensor in batch(model.config, 33))
    whole = 60 * 32 * 300
    monkeypatch.setitem(LOGITS_IN_CHUNK, "cpu", 2 * 200 * 300)
    teacher = algpt2_pt.distillation.make_teacher(run, torch.device("cpu"))
    with Largest() as largest:
        model(ids, labels=labels, **teacher.targets(ids)).loss.backward()
    assert 200 * 300 < largest.entries < whole
    with Largest() as largest, torch.no_grad():
        teacher.model(ids[:, :-1])
    assert largest.entries == whole

    shapes, matmul = [], tf.matmul
    monkeypatch.setattr(tf, "matmul", lambda *args, **kwargs: shapes.append(matmul(*args, **kwargs)) or shapes[-1])
    teacher = algpt2_tf.distillation.make_teacher(run)
    inputs = {"token_ids": tf.constant(ids.numpy(), "int32"), "padding_mask": tf.ones(ids.shape, "int32")}
    states = keras_model.backbone(inputs)
    next_token_loss(keras_model, states, tf.constant(labels.numpy(), "int32"), teacher.soft_targets(inputs))
    rows = [made.shape[0] for made in shapes if made.shape[-1] == 300]
    # Of the model and of the teacher, a chunk after the other.
    assert rows == [200] * 20
