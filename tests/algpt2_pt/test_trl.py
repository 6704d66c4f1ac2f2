"""TRL trains the model as it stands: its losses are ours on the same tokens, and every parameter moves.

TRL computes logits as products of `last_hidden_state` and the output embeddings, and never calls the head.
"""

import copy

import pytest
import torch
from datasets import Dataset
from models import tiny_config
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from algpt2_pt import ALGPT2ForSequenceClassification, ALGPT2LMHeadModel

pytestmark = pytest.mark.slow

SIZES = {"factorized": 10, "unfactorized": None, "as wide as the hidden states": 24}
OPTIONS = {
    "max_steps": 5,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}
TEXTS = ["The value of x", "An object of type", "The name is bound", "A list of values"]


@pytest.fixture(params=SIZES)
def model(request, text_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(
        vocab_size=len(text_tokenizer), embedding_size=SIZES[request.param], bos_token_id=0, eos_token_id=0
    )
    model = ALGPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    return model


def log_probabilities(model, ids):
    """Those of every token but the first, of one text, in float64, by the logits of the model itself."""
    with torch.no_grad():
        logits = model.double()(torch.tensor([ids])).logits[0, :-1]
    model.float()
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def train(trainer):
    """The losses of a training, after which every parameter has moved."""
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
        assert torch.isfinite(parameter).all(), name
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def test_supervised_fine_tuning(model, text_tokenizer, tmp_path):
    rows = [text_tokenizer.encode(text) for text in TEXTS]
    expected = -torch.cat([log_probabilities(model, row) for row in rows]).mean()
    trainer = SFTTrainer(
        # A directory, as its users give it.
        str(tmp_path),
        SFTConfig(output_dir=tmp_path / "sft", **OPTIONS),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=text_tokenizer,
    )
    losses = train(trainer)
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[-1] < losses[0]


def test_preference_optimization(model, text_tokenizer, tmp_path):
    chosen, rejected = [f" {text}" for text in TEXTS], [f" {text}" for text in reversed(TEXTS)]
    reference = ALGPT2LMHeadModel(model.config)
    end = text_tokenizer.eos_token

    def margin(prompt, completion):
        ids, start = text_tokenizer.encode(prompt + completion + end), len(text_tokenizer.encode(prompt))
        ratio = log_probabilities(model, ids) - log_probabilities(reference, ids)
        return ratio[start - 1 :].sum()

    pairs = zip(TEXTS, chosen, rejected, strict=True)
    expected = [-logsigmoid(0.1 * (margin(p, c) - margin(p, r))) for p, c, r in pairs]
    trainer = DPOTrainer(
        model,
        reference,
        DPOConfig(output_dir=tmp_path / "dpo", beta=0.1, **OPTIONS),
        train_dataset=Dataset.from_dict({"prompt": TEXTS, "chosen": chosen, "rejected": rejected}),
        processing_class=text_tokenizer,
    )
    losses = train(trainer)
    assert losses[0] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert losses[-1] < losses[0]


def test_group_relative_policy_optimization(model, text_tokenizer, tmp_path):
    found = []

    class Trainer(GRPOTrainer):
        def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **kwargs):
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )
            if not found:
                found.append((input_ids.clone(), attention_mask.clone(), logits_to_keep, result[0].detach().clone()))
            return result

    first = ALGPT2LMHeadModel(model.config)
    first.load_state_dict(model.state_dict())
    trainer = Trainer(
        model,
        reward_funcs=lambda completions, **kwargs: [float(len(set(text))) for text in completions],
        args=GRPOConfig(
            output_dir=tmp_path / "grpo", num_generations=4, max_completion_length=6, temperature=1.0, **OPTIONS
        ),
        train_dataset=Dataset.from_dict({"prompt": TEXTS}),
        processing_class=text_tokenizer,
    )
    train(trainer)
    ids, mask, kept, logps = found[0]
    for row, is_token, values in zip(ids, mask.bool(), logps, strict=True):
        completion = is_token[-kept:]
        expected = log_probabilities(first, row[is_token].tolist())[-int(completion.sum()) :]
        torch.testing.assert_close(values[completion], expected.float(), rtol=1e-4, atol=1e-4)


def test_reward_modelling(model, text_tokenizer, tmp_path):
    # A language model's directory, whose head is new.
    reward_model = ALGPT2ForSequenceClassification.from_pretrained(tmp_path, num_labels=1, pad_token_id=1)
    chosen, rejected = TEXTS, [f"{text} not" for text in reversed(TEXTS)]
    end = text_tokenizer.eos_token_id

    def reward(text):
        with torch.no_grad():
            return reward_model(torch.tensor([[*text_tokenizer.encode(text), end]])).logits[0, 0].double()

    expected = [-logsigmoid(reward(one) - reward(other)) for one, other in zip(chosen, rejected, strict=True)]
    tokenizer = copy.deepcopy(text_tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    trainer = RewardTrainer(
        reward_model,
        RewardConfig(output_dir=tmp_path / "reward", max_length=None, **OPTIONS),
        train_dataset=Dataset.from_dict({"chosen": chosen, "rejected": rejected}),
        processing_class=tokenizer,
    )
    before = {name: parameter.detach().clone() for name, parameter in reward_model.named_parameters()}
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert losses[0] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    # The head reads what project_out does not change.
    still = {name for name, parameter in reward_model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {name for name in before if "project_out" in name}
