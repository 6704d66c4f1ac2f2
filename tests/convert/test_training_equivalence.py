"""Training takes the same path in both frameworks, and on one and on two replicas."""

import numpy as np
import pytest
import tensorflow as tf
import torch
from models import pytorch_model, tiny_config
from transformers import Trainer, TrainerCallback, TrainingArguments

from algpt2.weights import check_weights
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.optimization import WarmupSchedule
from algpt2_tf.train import compile_for_training, select_strategy
from algpt2_tf.weights import assign_weights, canonical_weights

STEPS, BATCH, LENGTH, VOCABULARY = 50, 8, 16, 23
PEAK, WARMUP, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-2, 5, 0.1, 0.5


@pytest.fixture(scope="module")
def samples():
    """Token ids (STEPS * BATCH, LENGTH) with something to learn: each token follows from the one before."""
    draw = np.random.default_rng(1)
    ids = draw.integers(VOCABULARY, size=(STEPS * BATCH, LENGTH))
    for position in range(1, LENGTH):
        noise = draw.random(len(ids)) < 0.2
        ids[:, position] = np.where(noise, ids[:, position], (ids[:, position - 1] * 3 + 1) % VOCABULARY)
    return ids


@pytest.fixture(scope="module", params=[None, 10], ids=["unfactorized", "factorized"])
def start(request):
    """A configuration and weights to start from."""
    config = tiny_config(
        vocab_size=VOCABULARY,
        layer_schedule=[0, 1, 0],
        embedding_size=request.param,
        n_positions=LENGTH,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    state = ALGPT2LMHeadModel(config).state_dict()
    return config, {name: tensor.numpy() for name, tensor in state.items() if name != "lm_head.weight"}


def train_in_pytorch(config, weights, samples, tmp_path):
    """The loss of every step by transformers' Trainer, and the weights it ends with."""
    model = pytorch_model(config, weights)
    losses = []

    class Losses(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in logs:
                losses.append(logs["loss"])

    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=STEPS, per_device_train_batch_size=BATCH, train_sampling_strategy="sequential",
        learning_rate=PEAK, lr_scheduler_type="cosine", warmup_steps=WARMUP, weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    data = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in samples]
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Losses()]).train()
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return np.array(losses), state


def train_in_tensorflow(config, weights, samples, strategy):
    """The loss of every step by Keras's fit, and the weights it ends with."""
    with strategy.scope():
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
        schedule = WarmupSchedule("cosine", PEAK, WARMUP, STEPS)
        compile_for_training(model, schedule, WEIGHT_DECAY, MAX_GRAD_NORM)
    assign_weights(model, weights)
    losses = []

    class Losses(tf.keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(float(logs["loss"]))
            self.model.reset_metrics()

    ids = samples.astype("int32")
    inputs = {"token_ids": ids[:, :-1], "padding_mask": np.ones_like(ids[:, :-1])}
    data = tf.data.Dataset.from_tensor_slices((inputs, ids[:, 1:])).batch(BATCH, drop_remainder=True)
    model.fit(data, callbacks=[Losses()], verbose=0)
    return np.array(losses), canonical_weights(model)


def assert_weights_agree(expected, found):
    for name, array in expected.items():
        difference = np.abs(found[name] - array)
        if name.endswith("c_attn.bias"):
            # The softmax ignores the bias of the keys: its gradient is rounding error, which AdamW blows up.
            queries, _, values = np.split(difference, 3)
            difference = np.concatenate([queries, values])
        assert difference.max() < 1e-3 * np.abs(array).max(), name


def test_fifty_steps_give_the_same_losses(start, samples, tmp_path):
    config, weights = start
    pt_losses, pt_weights = train_in_pytorch(config, weights, samples, tmp_path)
    tf_losses, tf_weights = train_in_tensorflow(config, weights, samples, tf.distribute.get_strategy())
    assert len(pt_losses) == len(tf_losses) == STEPS
    assert pt_losses[-1] < 0.95 * pt_losses[0]
    np.testing.assert_allclose(tf_losses, pt_losses, rtol=1e-4)
    check_weights(config, pt_weights)
    assert_weights_agree(pt_weights, tf_weights)


def test_two_replicas_agree_with_one_device(start, samples):
    config, weights = start
    one_losses, one_weights = train_in_tensorflow(config, weights, samples, tf.distribute.get_strategy())
    strategy = select_strategy("mirrored")
    assert strategy.num_replicas_in_sync == 2
    two_losses, two_weights = train_in_tensorflow(config, weights, samples, strategy)
    np.testing.assert_allclose(two_losses, one_losses, rtol=1e-4)
    assert_weights_agree(one_weights, two_weights)
