"""The PyTorch models as users of transformers meet them; GPT-2 of transformers is the reference."""

import functools

import pytest
import torch
from models import close, pytorch_model, random_config, random_weights, tiny_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    pipeline,
)

from algpt2 import ALGPT2Config
from algpt2_pt import ALGPT2LMHeadModel, ALGPT2Model, loss
from algpt2_pt.cpu_kernels import use_plain_kernels
from algpt2_pt.loss import linear_cross_entropy

SCHEDULES = {"shared": [0, 0, 0], "unshared": [0, 1, 2], "cycle": [0, 1, 0]}


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    "fields",
    [{"depth_norms": True}, {"depth_biases": True, "depth_lora_rank": 2}, {"tie_projections": True}],
    ids=str,
)
def test_weights_that_wait_on_the_disk(fields, tmp_path):
    config = tiny_config(**fields)
    model = pytorch_model(config, random_weights(config))
    model.save_pretrained(tmp_path / "model")
    options = {"device_map": "auto", "max_memory": {"cpu": 100}, "offload_folder": tmp_path / "disk"}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64, **options)
    assert all(parameter.is_meta for parameter in found.parameters())
    ids = torch.arange(12)[None]
    assert close(found(ids).logits, model(ids).logits)


class TestAgainstGPT2:
    def test_a_saved_gpt2_gives_the_same_logits_loss_and_gradients(self, gpt2, tmp_path):
        gpt2.save_pretrained(tmp_path)
        model = ALGPT2LMHeadModel.from_pretrained(tmp_path)
        assert model.dtype == torch.float64
        assert model.config.layer_schedule == [0, 1, 2]
        ids = torch.arange(60).reshape(2, 30) % 97
        expected, found = gpt2(ids, labels=ids), model.eval()(ids, labels=ids)
        assert torch.equal(found.logits, expected.logits) or close(found.logits, expected.logits, 1e-14)
        assert close(found.loss, expected.loss)
        expected.loss.backward()
        found.loss.backward()
        assert close(model.transformer.h[2].mlp.c_fc.weight.grad, gpt2.transformer.h[2].mlp.c_fc.weight.grad.T, 1e-10)
        assert close(model.transformer.wte.weight.grad, gpt2.transformer.wte.weight.grad, 1e-10)

    def test_fields_of_the_configuration_can_be_replaced(self, gpt2, tmp_path):
        gpt2.save_pretrained(tmp_path)
        model = ALGPT2LMHeadModel.from_pretrained(tmp_path, attn_pdrop=0.3, dtype=torch.float32)
        assert model.config.attn_pdrop == 0.3 and model.dtype == torch.float32

    @pytest.mark.parametrize("untied", [False, True])
    def test_bare_and_untied_checkpoints(self, gpt2, untied, tmp_path):
        ids = torch.arange(20)[None]
        config = GPT2Config(**{**gpt2.config.to_dict(), "tie_word_embeddings": not untied})
        reference = GPT2LMHeadModel(config).eval()
        reference.save_pretrained(tmp_path / "head")
        assert close(
            ALGPT2LMHeadModel.from_pretrained(tmp_path / "head").eval()(ids).logits, reference(ids).logits, 1e-6
        )
        bare = GPT2Model(config).eval()
        bare.save_pretrained(tmp_path / "bare")
        if not untied:
            found = ALGPT2Model.from_pretrained(tmp_path / "bare").eval()(ids).last_hidden_state
            assert close(found, bare(ids).last_hidden_state, 1e-6)

    def test_token_type_ids(self, gpt2, tmp_path):
        gpt2.save_pretrained(tmp_path)
        model = ALGPT2LMHeadModel.from_pretrained(tmp_path).eval()
        ids, types = torch.arange(10)[None], torch.tensor([[5] * 4 + [6] * 6])
        assert close(model(ids, token_type_ids=types).logits, gpt2(ids, token_type_ids=types).logits)

    def test_hidden_states_and_attentions(self, gpt2, tmp_path):
        gpt2.save_pretrained(tmp_path)
        model = ALGPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
        gpt2.set_attn_implementation("eager")
        ids = torch.arange(10)[None]
        found = model(ids, output_hidden_states=True, output_attentions=True)
        expected = gpt2(ids, output_hidden_states=True, output_attentions=True)
        for kind in ("hidden_states", "attentions"):
            assert len(found[kind]) == len(expected[kind])
            assert all(close(f, e) for f, e in zip(found[kind], expected[kind], strict=True))

    def test_initialization_has_its_distribution(self):
        config = ALGPT2Config(vocab_size=500, n_embd=128, n_head=4, embedding_size=None, layer_schedule=[0, 1, 2])
        model = ALGPT2LMHeadModel(config)
        reference = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_embd=128, n_head=4, n_layer=3))
        for name, parameter in model.named_parameters():
            expected = reference.get_parameter(name)
            assert abs(parameter.mean() - expected.mean()) < 2e-3, name
            assert abs(parameter.std() - expected.std()) < 1e-3, name


def test_projections_start_with_the_variance_of_what_they_project():
    config = ALGPT2Config(vocab_size=500, n_embd=256, n_head=4, embedding_size=64, n_layer=2)
    model = ALGPT2LMHeadModel(config)
    draw = torch.randn(1000, 64)
    assert abs(model.transformer.project_in(draw).std() - 1) < 0.05
    assert abs(model.transformer.project_out(torch.randn(1000, 256)).std() - 1) < 0.05


def test_shared_blocks_are_unshared_ones_with_equal_weights():
    config = tiny_config(layer_schedule=[0, 1, 0])
    weights = random_weights(config, "float64")
    unrolled = {name: array for name, array in weights.items() if ".h." not in name}
    for depth, block in enumerate(config.layer_schedule):
        prefix = f"transformer.h.{block}."
        unrolled |= {
            n.replace(prefix, f"transformer.h.{depth}."): a for n, a in weights.items() if n.startswith(prefix)
        }
    expected = pytorch_model(tiny_config(layer_schedule=[0, 1, 2]), unrolled)
    ids = torch.arange(30)[None]
    assert close(pytorch_model(config, weights)(ids).logits, expected(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_implementations_agree(model, batch, implementation):
    expected = model(**batch).logits
    model.set_attn_implementation(implementation)
    if implementation == "flex_attention":
        model.float()
    with torch.no_grad():
        found = model(**batch).logits.double()
    real = batch["attention_mask"].bool()
    assert close(found[real], expected[real], 1e-4 if implementation == "flex_attention" else 1e-12)


def test_padding_does_not_reach_the_tokens(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    changed = torch.where(mask.bool(), ids, (ids + 1) % 97)
    real = mask.bool()
    assert torch.equal(model(changed, attention_mask=mask).logits[real], model(ids, attention_mask=mask).logits[real])


def test_inputs_embeds_are_the_token_embeddings(model, batch):
    embeds = model.get_input_embeddings()(batch["input_ids"])
    assert embeds.shape[-1] == model.config.embedding_width
    found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    assert torch.equal(found, model(**batch).logits)


def test_logits_to_keep(model, batch):
    logits = model(**batch).logits
    assert close(model(**batch, logits_to_keep=3).logits, logits[:, -3:])
    assert close(model(**batch, logits_to_keep=torch.tensor([1, 4])).logits, logits[:, [1, 4]])


def test_loss_is_the_mean_cross_entropy_of_the_next_token(model, batch):
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    log_probabilities = model(**batch).logits.log_softmax(-1)[:, :-1]
    picked = -log_probabilities.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    expected = picked.sum() / mask[:, 1:].sum()
    assert close(model(**batch, labels=labels).loss.double(), expected, 1e-5)
    assert close(model(**batch, labels=labels, num_items_in_batch=7).loss.double(), picked.sum() / 7, 1e-5)


@pytest.mark.parametrize("logits_in_chunk", [1, 2500, 1 << 24], ids=["smallest", "uneven", "one chunk"])
@pytest.mark.parametrize("num_items_in_batch", [None, 40])
def test_skipping_the_logits_changes_neither_loss_nor_gradients(
    model, batch, num_items_in_batch, logits_in_chunk, monkeypatch
):
    in_chunks = functools.partial(linear_cross_entropy, logits_in_chunk=logits_in_chunk)
    monkeypatch.setattr(loss, "linear_cross_entropy", in_chunks)
    labels = batch["input_ids"].clone()
    labels[0, 2:5] = -100
    # transformers' own loss is in float32.
    logits, targets = model(**batch).logits[:, :-1].transpose(1, 2), labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = expected / (num_items_in_batch or (targets != -100).sum())
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    options = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
    found = model(**batch, labels=labels, skip_logits=True, **options)
    found.loss.backward()
    assert found.logits is None and close(found.loss, expected)
    for name, parameter in model.named_parameters():
        assert close(parameter.grad, gradients[name], 1e-10), name


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    def gradients():
        model.zero_grad()
        model(**batch, labels=batch["input_ids"]).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    expected = gradients()
    model.gradient_checkpointing_enable()
    assert all(block.gradient_checkpointing for block in model.transformer.h)
    assert all(close(f, e, 1e-10) for f, e in zip(gradients(), expected, strict=True))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_drops_the_same_again(use_reentrant):
    config = tiny_config(layer_schedule=[0, 1, 0], resid_pdrop=0.2, embd_pdrop=0.1, attn_pdrop=0.3)
    model = pytorch_model(config, random_weights(config)).train()
    ids = torch.arange(36).reshape(3, 12)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(0)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(close(f, e, 1e-10) for f, e in zip(*gradients, strict=True))


@pytest.mark.slow
def test_compiled_model_gives_the_same_logits(model, batch):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert close(compiled(**batch).logits, model(**batch).logits)


def test_resizing_the_vocabulary_keeps_the_head_tied(model):
    ids = torch.arange(10)[None]
    expected = model(ids).logits
    model.resize_token_embeddings(120)
    assert model.config.vocab_size == 120
    assert model.lm_head.weight is model.transformer.wte.weight
    logits = model(ids).logits
    assert logits.shape[-1] == 120
    assert close(logits[..., :97], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_saving_and_loading(model, dtype, tmp_path):
    model.to(dtype).save_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    for loaded in (ALGPT2LMHeadModel.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is ALGPT2LMHeadModel
        assert loaded.dtype == dtype
        assert torch.equal(use_plain_kernels(loaded.eval())(ids).logits, model(ids).logits)
    assert isinstance(AutoModel.from_pretrained(tmp_path), ALGPT2Model)
    assert torch.isfinite(model(ids, labels=ids).loss)


def test_auto_classes_build_from_a_configuration():
    config = tiny_config()
    assert isinstance(AutoConfig.for_model("algpt2"), ALGPT2Config)
    assert isinstance(AutoModel.from_config(config), ALGPT2Model)
    assert isinstance(AutoModelForCausalLM.from_config(config), ALGPT2LMHeadModel)


def test_text_generation_pipeline(text_tokenizer, tmp_path):
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(text_tokenizer))
    ALGPT2LMHeadModel(config).save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    generate = pipeline("text-generation", model=str(tmp_path))
    texts = generate(["The value of", "An object"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert [
        text[0]["generated_text"].startswith(p) for text, p in zip(texts, ["The value of", "An object"], strict=True)
    ]
    alone = generate("An object", max_new_tokens=5, do_sample=False)
    assert alone[0]["generated_text"] == texts[1][0]["generated_text"]


@pytest.mark.parametrize(
    ("schedule", "deeper"),
    [([0, 0], [0] * 5), ([0, 0, 1, 1], [0, 0, 0, 1, 1]), ([0, 1, 0], [0, 1, 0, 1, 0]), ([0, 1, 1, 2], [0, 1, 1, 1, 2])],
)
def test_another_depth_of_a_shared_model(schedule, deeper, tmp_path):
    config = tiny_config(layer_schedule=schedule)
    weights = random_weights(config)
    pytorch_model(config, weights).save_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    expected = pytorch_model(tiny_config(layer_schedule=deeper), weights)
    for cls in (ALGPT2LMHeadModel, AutoModelForCausalLM):
        loaded = cls.from_pretrained(tmp_path, n_layer=5).eval()
        assert close(loaded(ids).logits, expected(ids).logits)


def test_wrong_inputs_are_named(model):
    ids = torch.zeros((1, 81), dtype=torch.long)
    with pytest.raises(ValueError, match="81 tokens, more than n_positions 80"):
        model(ids)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    model.config.layer_schedule = [0, 2, 2]
    with pytest.raises(ValueError, match="layer_schedule"):
        ALGPT2LMHeadModel(model.config)


@pytest.mark.parametrize("seed", range(4))
def test_dropout_is_off_in_evaluation_and_on_in_training(seed):
    config = random_config(seed)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.2
    model = pytorch_model(config, random_weights(config))
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
