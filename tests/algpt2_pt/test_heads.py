"""Heads for classes, tokens and answers, beside those of transformers' GPT-2, which hold the same weights."""

import copy

import pytest
import torch
import transformers
from models import close, random_weights, save_checkpoint, tiny_config
from transformers import AutoModelForSequenceClassification, GPT2Config, pipeline

import algpt2_pt
from algpt2_pt import ALGPT2ForSequenceClassification, ALGPT2ForTokenClassification, ALGPT2LMHeadModel

HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
PAD = 96
LABELS = {
    "ForSequenceClassification": {"labels": torch.tensor([2, 0])},
    "ForTokenClassification": {"labels": torch.tensor([[1, -100, 2, 0, 1, 2, 2, -100]] * 2)},
    "ForQuestionAnswering": {"start_positions": torch.tensor([1, 3]), "end_positions": torch.tensor([2, 40])},
}


@pytest.fixture(scope="module", params=HEADS)
def pair(request, tmp_path_factory):
    """A model of transformers with a head, and ALGPT2's of the same checkpoint; both in float64."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, num_labels=3, pad_token_id=PAD, eos_token_id=0
    )
    gpt2 = getattr(transformers, f"GPT2{request.param}")(config).double().eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    directory = tmp_path_factory.mktemp("gpt2")
    gpt2.save_pretrained(directory)
    return gpt2, getattr(algpt2_pt, f"ALGPT2{request.param}").from_pretrained(directory).eval(), LABELS[request.param]


@pytest.mark.parametrize("padding", ["none", "left", "right", "both ways in one batch"])
def test_logits_loss_and_gradients_are_those_of_gpt2(pair, padding):
    gpt2, model, labels = pair
    ids = torch.arange(16).reshape(2, 8) * 5 % 95
    if padding != "none":
        ids[0, slice(0, 3) if padding != "right" else slice(5, 8)] = PAD
    if padding == "both ways in one batch":
        ids[1, 6:] = PAD
    mask = (ids != PAD).long()
    expected, found = (model(ids, attention_mask=mask, **labels) for model in pair[:2])
    # transformers computes the loss of tokens in float32, its GPT-2 in the dtype of the model.
    precision = 1e-6 if isinstance(model, ALGPT2ForTokenClassification) else 1e-10
    for name in expected.keys() - {"past_key_values"}:
        assert close(found[name], expected[name], precision if name == "loss" else 1e-12), name
    expected.loss.backward()
    found.loss.backward()
    gradients = (each.transformer.h[0].attn.c_attn.weight.grad for each in pair[:2])
    assert close(next(gradients).T, next(gradients), precision)
    gpt2.zero_grad()
    model.zero_grad()


@pytest.mark.parametrize("pair", ["ForSequenceClassification"], indirect=True)
def test_one_text_needs_no_pad_token_and_several_do(pair):
    gpt2, model, _ = pair
    ids = torch.arange(16).reshape(2, 8)
    for each in (gpt2, model):
        each.config.pad_token_id = None
    try:
        assert close(model(ids[:1]).logits, gpt2(ids[:1]).logits)
        with pytest.raises(ValueError, match="pad_token_id"):
            model(ids)
    finally:
        for each in (gpt2, model):
            each.config.pad_token_id = PAD


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_losses_of_other_problems_are_those_of_gpt2(problem, tmp_path):
    config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=2, n_head=3, num_labels=3, pad_token_id=PAD)
    config.problem_type = problem
    gpt2 = transformers.GPT2ForSequenceClassification(config).eval()
    gpt2.save_pretrained(tmp_path)
    model = ALGPT2ForSequenceClassification.from_pretrained(tmp_path).eval()
    ids, labels = torch.arange(16).reshape(2, 8), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert close(model(ids, labels=labels).loss, gpt2(ids, labels=labels).loss, 1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_language_model_becomes_one_with_a_head_and_is_saved_and_loaded(head, tmp_path):
    config = tiny_config(num_labels=4, pad_token_id=PAD)
    save_checkpoint(tmp_path / "lm", config, random_weights(config))
    language_model = ALGPT2LMHeadModel.from_pretrained(tmp_path / "lm").eval()
    head_class = getattr(algpt2_pt, f"ALGPT2{head}")
    model, info = head_class.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} < {"score", "classifier", "qa_outputs"}
    assert not info["unexpected_keys"]
    ids = torch.arange(8)[None]
    expected = language_model.transformer(ids).last_hidden_state
    assert torch.equal(model.eval().transformer(ids).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "head")
    again = getattr(transformers, f"AutoModel{head}").from_pretrained(tmp_path / "head").eval()
    assert type(again) is head_class and again.config.architectures == [head_class.__name__]
    stored, loaded = model.state_dict(), again.state_dict()
    assert stored.keys() == loaded.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)
    # MKL rounds by where arrays lie in memory, and copies lie alike.
    again, model = copy.deepcopy(again), copy.deepcopy(model)
    assert all(torch.equal(found, expected) for found, expected in zip(again(ids)[:1], model(ids)[:1], strict=True))


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_all_that_is_trained_has_a_gradient(head, is_tied, tmp_path):
    # Else training over several processes waits for gradients that do not come.
    made = getattr(algpt2_pt, f"ALGPT2{head}")(tiny_config(num_labels=3, pad_token_id=PAD, tie_projections=is_tied))
    made.save_pretrained(tmp_path)
    for model in (made, type(made).from_pretrained(tmp_path)):
        model(torch.arange(16).reshape(2, 8), **LABELS[head]).loss.backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        parts = ("bias",) if is_tied else ("weight", "bias")
        unused = {f"transformer.project_out.{part}" for part in parts}
        assert dict(model.named_parameters()).keys() - trained == unused


def test_another_number_of_classes_is_refused_unless_sizes_may_differ(tmp_path):
    ALGPT2ForSequenceClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="cannot load it"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model(torch.arange(8)[None]).logits.shape == (1, 5)


def test_the_head_reads_what_the_last_normalization_gives():
    config = tiny_config(num_labels=4)
    model = ALGPT2ForTokenClassification(config).eval()
    states = model.transformer(torch.arange(8)[None], output_hidden_states=True).hidden_states[-1]
    assert states.shape == (1, 8, config.n_embd) and config.embedding_width < config.n_embd
    outputs = model(torch.arange(8)[None])
    assert close(outputs.logits, states @ model.classifier.weight.T + model.classifier.bias, 1e-6)
    assert outputs.hidden_states is None


@pytest.mark.slow
def test_pipelines_of_transformers_name_the_classes(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), id2label={0: "bad", 1: "good"}, pad_token_id=0)
    model = ALGPT2ForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    found = pipeline("text-classification", str(tmp_path), device=-1)("for x in range(10)")
    assert found[0]["label"] in ("bad", "good") and 0.5 <= found[0]["score"] <= 1
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.id2label == {0: "bad", 1: "good"}
