"""The PyTorch model for pretraining: its two losses, its last token, and checkpoints with and without its head."""

import numpy as np
import pytest
import torch
from models import pretraining_weights, pytorch_model, random_batch, random_weights, tiny_config
from transformers import AutoModelForCausalLM, AutoModelForPreTraining, GPT2Config, GPT2LMHeadModel, Trainer
from transformers import TrainingArguments as Arguments

from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel, ALGPT2Model

CONFIG = tiny_config(layer_schedule=[0, 1, 0])
ORDER = torch.tensor([1, 0, 1])


@pytest.fixture
def model():
    return pytorch_model(CONFIG, pretraining_weights(CONFIG), ALGPT2ForPreTraining)


@pytest.fixture
def batch():
    ids, mask = random_batch(CONFIG)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def mean_cross_entropy(logits, labels):
    logits = logits.detach().numpy().astype("float64")
    logits = logits - logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probabilities, labels.numpy()[..., None], -1)[..., 0]


def test_both_losses_are_cross_entropies_and_add_up(model, batch):
    mask = batch["attention_mask"][:, 1:].bool()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels, sentence_order_label=ORDER)
    tokens = mean_cross_entropy(output.logits[:, :-1], batch["input_ids"][:, 1:])[mask.numpy()]
    order = mean_cross_entropy(output.sop_logits, ORDER)
    np.testing.assert_allclose(output.lm_loss.item(), tokens.mean(), rtol=1e-6)
    np.testing.assert_allclose(output.sop_loss.item(), order.mean(), rtol=1e-6)
    np.testing.assert_allclose(output.loss.item(), tokens.mean() + order.mean(), rtol=1e-6)

    accumulated = model(
        **batch, labels=labels, sentence_order_label=ORDER, num_items_in_batch=50, num_sequences_in_batch=6
    )
    np.testing.assert_allclose(accumulated.lm_loss.item(), tokens.sum() / 50, rtol=1e-6)
    np.testing.assert_allclose(accumulated.sop_loss.item(), order.sum() / 6, rtol=1e-6)

    assert model(**batch).loss is None
    only_order = model(**batch, sentence_order_label=ORDER)
    assert only_order.lm_loss is None and only_order.loss == only_order.sop_loss
    only_tokens = model(**batch, labels=labels)
    assert only_tokens.sop_loss is None and only_tokens.loss == only_tokens.lm_loss
    assert model(**batch, labels=labels, return_dict=False)[0] == only_tokens.loss


def test_the_order_is_read_from_the_last_token_on_either_side_of_the_padding(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    right = model(**batch).sop_logits
    for row, length in enumerate(mask.sum(-1)):
        alone = model(ids[row : row + 1, :length], output_hidden_states=True)
        torch.testing.assert_close(alone.sop_logits[0], right[row], rtol=1e-12, atol=1e-12)
        expected = model.sop_classifier(alone.hidden_states[-1][0, -1])
        torch.testing.assert_close(alone.sop_logits[0], expected, rtol=1e-12, atol=1e-12)
        pad = ids.shape[1] - length
        left = {
            "input_ids": torch.nn.functional.pad(ids[row : row + 1, :length], (pad, 0)),
            "attention_mask": torch.nn.functional.pad(mask[row : row + 1, :length], (pad, 0)),
            "position_ids": (torch.arange(ids.shape[1])[None] - pad).clamp(min=0),
        }
        torch.testing.assert_close(model(**left).sop_logits[0], right[row], rtol=1e-12, atol=1e-12)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).sop_logits, right)


def test_the_language_model_in_it_is_the_language_model(model, batch):
    language_model = pytorch_model(CONFIG, random_weights(CONFIG))
    assert torch.equal(model(**batch).logits, language_model(**batch).logits)
    assert torch.equal(model(**batch, logits_to_keep=2).logits, language_model(**batch, logits_to_keep=2).logits)
    ids = batch["input_ids"][:, :5]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), language_model.generate(ids, **options))


def test_checkpoints_go_between_the_classes(model, batch, tmp_path, caplog):
    model.save_pretrained(tmp_path / "pretraining")
    for load in (ALGPT2ForPreTraining, AutoModelForPreTraining):
        loaded = load.from_pretrained(tmp_path / "pretraining").eval()
        assert type(loaded) is ALGPT2ForPreTraining
        torch.testing.assert_close(loaded(**batch).sop_logits, model(**batch).sop_logits, rtol=1e-12, atol=1e-12)
    assert model.state_dict().keys() - ALGPT2LMHeadModel(CONFIG).state_dict().keys() == {
        "sop_classifier.weight",
        "sop_classifier.bias",
    }
    caplog.clear()
    for load in (ALGPT2LMHeadModel, AutoModelForCausalLM):
        language_model, info = load.from_pretrained(tmp_path / "pretraining", output_loading_info=True)
        assert type(language_model) is ALGPT2LMHeadModel and not info["unexpected_keys"]
        assert "sop_classifier" not in caplog.text
    torch.testing.assert_close(language_model.eval()(**batch).logits, model(**batch).logits, rtol=1e-12, atol=1e-12)
    assert isinstance(ALGPT2Model.from_pretrained(tmp_path / "pretraining"), ALGPT2Model)

    language_model.save_pretrained(tmp_path / "language_model")
    loaded, info = ALGPT2ForPreTraining.from_pretrained(tmp_path / "language_model", output_loading_info=True)
    assert info["missing_keys"] == {"sop_classifier.weight", "sop_classifier.bias"}
    assert "sop_classifier" in caplog.text
    assert 0 < loaded.sop_classifier.weight.std() < 0.03 and not loaded.sop_classifier.bias.any()


def test_it_starts_from_a_gpt2_of_transformers(tmp_path):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=2, n_head=3)).eval()
    gpt2.save_pretrained(tmp_path)
    loaded = ALGPT2ForPreTraining.from_pretrained(tmp_path).eval()
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids).logits, gpt2(ids).logits)
    assert 0 < loaded.sop_classifier.weight.std() < 0.03


def test_the_trainer_learns_the_order_and_predicts_both_logits(tmp_path):
    torch.manual_seed(0)
    model = ALGPT2ForPreTraining(CONFIG)
    order = torch.arange(16) % 2
    ids = torch.where(order[:, None] == 1, torch.tensor([[9, 4, 7, 3]]), torch.tensor([[7, 3, 9, 4]]))
    rows = [{"input_ids": i, "labels": i, "sentence_order_label": o} for i, o in zip(ids, order, strict=True)]
    arguments = Arguments(
        output_dir=tmp_path, max_steps=30, learning_rate=1e-2, per_device_train_batch_size=8, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    logits, sop_logits = trainer.predict(rows).predictions
    assert logits.shape == (16, 4, 97)
    np.testing.assert_array_equal(sop_logits.argmax(-1), order)
