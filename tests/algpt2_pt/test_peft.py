"""Adapters of PEFT: what they compute stays when they are merged and when they are loaded again."""

import pytest
import torch
from models import DEPTHS, close, pytorch_model, random_weights, tiny_config
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)

from algpt2_pt import ALGPT2LMHeadModel

IDS = torch.arange(12)[None]
TARGETS = [["c_attn"], ["c_proj"], ["c_fc"], ["project_in"], ["project_out"], ["wpe"], "all-linear"]


def base(**overrides):
    config = tiny_config(**overrides)
    return pytorch_model(config, random_weights(config))


@pytest.mark.parametrize("tie_projections", [False, True])
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_merged_and_unmerged_adapters_compute_the_same(targets, tie_projections, tmp_path):
    if tie_projections and targets == ["project_out"]:
        pytest.skip("it has no matrix of its own")
    overrides = {"tie_projections": tie_projections, **DEPTHS}
    expected = base(**overrides)(IDS).logits
    options = LoraConfig(r=3, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(base(**overrides), options).double().eval()
    adapted = model(IDS).logits
    assert not close(adapted, expected, 1e-3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(**overrides), tmp_path).double().eval()
    assert close(loaded(IDS).logits, adapted)
    assert close(model.merge_and_unload()(IDS).logits, adapted)


def test_an_adapter_of_a_shared_block_learns_from_all_its_depths():
    model = get_peft_model(base(layer_schedule=[0, 0, 0]), LoraConfig(r=3, target_modules=["c_attn", "project_in"]))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 4 and sum("c_attn" in name for name in names) == 2
    losses = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(8):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_adapters_on_the_tied_matrix_are_refused(target):
    options = LoraConfig(r=3, target_modules=[target], init_lora_weights=False)
    with pytest.raises(ValueError, match=f"an adapter on {target}: wte and lm_head are one matrix"):
        get_peft_model(base(), options)
    model = get_peft_model(base(tie_word_embeddings=False), options).double().eval()
    adapted = model(IDS).logits
    assert close(model.merge_and_unload()(IDS).logits, adapted)


def test_single_tokens_of_the_tied_matrix_are_trained():
    model = get_peft_model(base(), TrainableTokensConfig(token_indices=[1, 2], task_type="CAUSAL_LM"))
    before = model(IDS).logits.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    adapted = model(IDS).logits
    changed = (adapted - before).abs().amax((0, 1)) > 1e-3
    assert changed[[1, 2]].all() and close(model.merge_and_unload()(IDS).logits, adapted)


@pytest.mark.parametrize(
    ("modules", "tie"), [(["wte"], False), (["lm_head"], False), (["wte", "lm_head"], True)], ids=str
)
def test_the_embedding_itself_can_be_trained(modules, tie, tmp_path):
    options = LoraConfig(r=3, target_modules=["c_attn"], modules_to_save=modules, ensure_weight_tying=tie)
    model = get_peft_model(base(), options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted = model.eval()(IDS).logits
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert close(merged(IDS).logits, adapted)
    assert close(ALGPT2LMHeadModel.from_pretrained(tmp_path).eval()(IDS).logits, adapted)


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (LoraConfig(), "c_attn.lora_A"),
        (LoraConfig(use_dora=True), "c_attn.lora_magnitude_vector"),
        (AdaLoraConfig(total_step=10), "c_attn.lora_E"),
        (IA3Config(), "mlp.c_proj.ia3_l"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5), "prompt_encoder"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, token_dim=10), "prompt_encoder"),
    ],
    ids=["LoRA", "DoRA", "AdaLoRA", "IA3", "prefix", "prompt"],
)
def test_kinds_of_adapters_by_their_defaults(options, trained, tmp_path):
    """Each learns, changes nothing else, and is loaded again."""
    model = get_peft_model(base().float(), options)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names and all(any(part in name for part in (trained, "lora_", "ia3_l")) for name in names)
    assert any(trained in name for name in names)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and moved <= set(names)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base().float(), tmp_path).eval()
    assert close(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, 1e-6)
