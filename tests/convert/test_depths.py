"""What belongs to a depth of a shared block, against GPT-2s of transformers with it multiplied out by hand."""

import json

import keras
import numpy as np
import pytest
import torch
from command_lines import run
from models import (
    DEPTHS,
    both_models,
    pytorch_model,
    random_batch,
    random_weights,
    relative_difference,
    save_checkpoint,
    tiny_config,
)
from transformers import GPT2Config, GPT2LMHeadModel

import algpt2_pt.evaluate
import algpt2_tf.evaluate
from algpt2 import ALGPT2Config, parameter_count
from algpt2.checkpoints.weights import weight_shapes
from algpt2.data.corpus import read_corpus
from algpt2.onnx.graph import language_model
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.weights import assign_weights

LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
# One block at three depths between two that are applied once.
SANDWICH = [0, 1, 1, 1, 2]


def free_config(**overrides):
    return tiny_config(**{"embedding_size": None, "layer_schedule": SANDWICH, **DEPTHS, **overrides})


def gpt2_by_hand(config, weights, depths):
    """A GPT-2 of transformers whose layer d has block and depth `depths[d]`, everything multiplied out."""
    theirs = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.n_positions, n_embd=config.n_embd, n_head=config.n_head,
        n_layer=len(depths), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    state = {name: weights[name] for name in weights if ".h." not in name}
    for layer, (block, depth) in enumerate(depths):
        shared, own = f"transformer.h.{block}", f"transformer.h.{block}.depths.{depth}"
        prefix = f"transformer.h.{layer}"
        for norm in ("ln_1", "ln_2"):
            for part in ("weight", "bias"):
                state[f"{prefix}.{norm}.{part}"] = weights[f"{shared if depth is None else own}.{norm}.{part}"]
        for name in LAYERS:
            matrix, bias = weights[f"{shared}.{name}.weight"], weights.get(f"{shared}.{name}.bias")
            if depth is not None:
                added = f"{own}.{name.replace('.', '_')}"
                matrix = matrix + weights[f"{added}.up"] @ weights[f"{added}.down"]
                bias = weights[f"{added}.bias"]
            factor = config.residual_multiplier if name.endswith("c_proj") else 1
            # transformers' GPT-2 has the inputs first.
            state[f"{prefix}.{name}.weight"], state[f"{prefix}.{name}.bias"] = matrix.T * factor, bias * factor
    model = GPT2LMHeadModel(theirs).double()
    missing, unexpected = model.load_state_dict({n: torch.tensor(a) for n, a in state.items()}, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    return model.eval()


def test_both_frameworks_and_a_gpt2_by_hand_compute_the_same():
    config = free_config()
    tensorflow, pytorch = both_models(config)
    ids, mask = random_batch(config, padded=False)
    by_hand = gpt2_by_hand(config, random_weights(config), [(0, None), (1, 1), (1, 2), (1, 3), (2, None)])
    expected = by_hand(torch.tensor(ids)).logits
    assert relative_difference(expected, pytorch(torch.tensor(ids)).logits) < 1e-12
    assert relative_difference(expected, tensorflow({"token_ids": ids, "padding_mask": mask})) < 1e-12


def test_only_what_is_asked_for_belongs_to_depths_and_a_block_used_once_has_all_to_itself():
    plain = set(weight_shapes(free_config(depth_norms=False, depth_biases=False, depth_lora_rank=0)))
    own = {"depth_norms": 4, "depth_biases": 4, "depth_lora_rank": 8}
    for field, tensors in own.items():
        off = {"depth_norms": False, "depth_biases": False, "depth_lora_rank": 0}
        names = set(weight_shapes(free_config(**{**off, field: DEPTHS[field]})))
        depths = {name for name in names if ".depths." in name}
        assert {name.split(".")[4] for name in depths} == {"1", "2", "3"} and len(depths) == 3 * tensors
        # What the depths have instead is not the block's any more; nothing else is gone.
        gone = plain - names
        assert len(gone) == (0 if field == "depth_lora_rank" else tensors) and all(".h.1." in name for name in gone)


def test_parameters_are_counted_by_what_they_belong_to():
    config = ALGPT2Config(depth_norms=True, depth_biases=True, depth_lora_rank=16)
    norms, biases = 12 * 4 * 768, 12 * (3 * 768 + 768 + 4 * 768 + 768)
    low_rank = 12 * 16 * (4 * 768 + 2 * 768 + 5 * 768 + 5 * 768)
    assert parameter_count(config, "depths") == norms + biases + low_rank
    matrices = 12 * 768 * 768
    assert parameter_count(config, "blocks") == matrices + 2 * 768
    assert parameter_count(config, "embeddings") == (50257 + 1024) * 128 + 2 * 768 * 128 + 768 + 128
    assert parameter_count(config) == sum(parameter_count(config, part) for part in ("embeddings", "blocks", "depths"))


def test_a_new_model_starts_as_one_without_additions():
    config = free_config(depth_norms=False, depth_biases=False)
    ids, _ = random_batch(config, padded=False)
    torch.manual_seed(0)
    pytorch = ALGPT2LMHeadModel(config).eval()
    down = pytorch.transformer.h[1].depths["2"]["mlp_c_proj"].down
    assert abs(down.std().item() * down.shape[1] ** 0.5 - 1) < 0.2
    plain = ALGPT2LMHeadModel(free_config(depth_norms=False, depth_biases=False, depth_lora_rank=0)).eval()
    missing, unexpected = plain.load_state_dict(pytorch.state_dict(), strict=False)
    assert not missing and all("depths" in name for name in unexpected)
    torch.testing.assert_close(pytorch(torch.tensor(ids)).logits, plain(torch.tensor(ids)).logits)
    keras.utils.set_random_seed(0)
    block = TFALGPT2Backbone(config).transformer_layers[1]
    layer = block.depths[0].mlp_c_proj
    assert not np.any(layer.up.kernel)
    assert abs(np.std(layer.down.kernel) * layer.down.kernel.shape[0] ** 0.5 - 1) < 0.2


# At relative depths 0, 1/2 and 1 of seven, and of five depths between two blocks of their own.
OTHER_DEPTHS = {
    "full, shorter": ([0] * 7, 3, [(0, 0), (0, 3), (0, 6)]),
    "full, longer": ([0] * 2, 5, [(0, 0), (0, 0), (0, 0), (0, 1), (0, 1)]),
    "cycle": ([0, 1, 0, 1, 0, 1], 3, [(0, 0), (1, 3), (0, 4)]),
    "sandwich": (SANDWICH, 4, [(0, None), (1, 1), (1, 3), (2, None)]),
}


@pytest.mark.parametrize("name", OTHER_DEPTHS)
def test_another_depth_takes_what_belongs_to_the_nearest(name, tmp_path):
    schedule, n_layer, depths = OTHER_DEPTHS[name]
    config = free_config(layer_schedule=schedule)
    weights = random_weights(config)
    directory = save_checkpoint(tmp_path, config, weights)
    ids, mask = random_batch(config, padded=False)
    expected = gpt2_by_hand(config, weights, depths)(torch.tensor(ids)).logits
    # As transformers itself loads it, and as a model that is saved at this depth and loaded once more.
    shorter = ALGPT2LMHeadModel.from_pretrained(directory, n_layer=n_layer)
    shorter.save_pretrained(tmp_path / "again")
    for model in (shorter, ALGPT2LMHeadModel.from_pretrained(tmp_path / "again")):
        assert relative_difference(expected, model.eval()(torch.tensor(ids)).logits) < 1e-12
    tensorflow = TFALGPT2LMHeadModel(TFALGPT2Backbone(shorter.config, dtype="float64"))
    assign_weights(tensorflow, weights)
    assert relative_difference(expected, tensorflow({"token_ids": ids, "padding_mask": mask})) < 1e-12


def test_a_model_goes_back_from_a_depth_at_which_no_block_is_shared(tmp_path):
    config = free_config()
    directory = save_checkpoint(tmp_path / "model", config, random_weights(config))
    ids = torch.tensor(random_batch(config, padded=False)[0])
    ALGPT2LMHeadModel.from_pretrained(directory, n_layer=3).save_pretrained(tmp_path / "short")
    again = ALGPT2LMHeadModel.from_pretrained(tmp_path / "short", n_layer=5).eval()
    expected = ALGPT2LMHeadModel.from_pretrained(directory).eval()(ids).logits
    assert relative_difference(expected, again(ids).logits) == 0


def test_evaluate_at_another_depth(text_tokenizer, tmp_path, capsys, monkeypatch):
    # Where the figure goes.
    monkeypatch.chdir(tmp_path)
    text_file = tmp_path / "text.txt"
    text_file.write_text("".join(read_corpus("python-docs").validation)[:2000], encoding="utf-8")
    config = free_config(vocab_size=len(text_tokenizer), layer_schedule=[0] * 4)
    directory = save_checkpoint(tmp_path / "model", config, tokenizer=text_tokenizer)
    found = []
    for module in (algpt2_pt.evaluate, algpt2_tf.evaluate):
        code, out, err = run(capsys, module, directory, "--dataset", text_file, "--depth", "4,2", "--json")
        assert code == 0, err
        found.append([row["loss"] for row in json.loads(out)])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert abs(found[0][0] - found[0][1]) > 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth_lora_rank": -1}, "depth_lora_rank must be 0 to n_embd 24, but is -1"),
        ({"depth_lora_rank": 25}, "depth_lora_rank must be 0 to n_embd 24, but is 25"),
        ({"residual_multiplier": 0.0}, "residual_multiplier must be positive and finite, 1e-30 to 1e30, but is 0.0"),
        ({"residual_multiplier": 1e39}, r"residual_multiplier must be positive and finite, .* but is 1e\+39"),
        ({"residual_multiplier": 10**400}, "residual_multiplier must be positive and finite"),
        ({"trained_schedule": [0, 1]}, "trained_schedule must use the blocks of layer_schedule, 0 to 2"),
        ({"trained_schedule": [0, 1, 2] * 10_000}, "0 to 2, in at most 10000 depths"),
    ],
)
def test_wrong_values_name_their_field(values, message):
    with pytest.raises(ValueError, match=message):
        free_config(**values)


def test_a_shared_block_stands_once_in_an_onnx_graph_beside_what_belongs_to_depths():
    config = free_config()
    stored = {tensor.name for tensor in language_model(config, random_weights(config)).graph.initializer}
    matrices = [name for name in stored if name.endswith("c_attn.weight")]
    assert sorted(matrices) == [f"transformer.h.{block}.attn.c_attn.weight" for block in range(3)]
    assert sum(name.endswith("c_attn.up") for name in stored) == 3


def test_gradients_reach_what_belongs_to_depths_with_checkpointing():
    config = free_config()
    ids = torch.tensor(random_batch(config, padded=False)[0])
    found = []
    for checkpointing in (False, True):
        model = pytorch_model(config, random_weights(config)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids, labels=ids).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, found[1][name])


@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_low_ranks_take_no_more_room_quantized_than_whole(precision):
    config = free_config(n_embd=64, n_head=2, depth_lora_rank=8)
    graph = language_model(config, random_weights(config, "float32"), precision).graph
    sizes = {
        tensor.name: len(tensor.raw_data) for tensor in graph.initializer if ".depths.2.mlp_c_fc.up" in tensor.name
    }
    assert 0 < sum(sizes.values()) <= 4 * 8 * 4 * 64
