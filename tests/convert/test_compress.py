"""A smaller ALGPT2 of another checkpoint: exact at full rank, never worse with more, best as numpy's own SVD says."""

import itertools
import json

import numpy as np
import pytest
import torch
from command_lines import run
from isolation import TENSORFLOW, TORCH, run_without
from models import (
    both_models,
    pretraining_weights,
    pytorch_model,
    random_batch,
    random_config,
    random_weights,
    read_checkpoint,
    relative_difference,
    save_checkpoint,
    tiny_config,
)
from transformers import GPT2Config, GPT2LMHeadModel

import convert.__main__ as main_module
from algpt2 import layer_schedule
from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.checkpoints.weights import check_weights
from algpt2.configuration import ACTIVATIONS
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from convert.compress import compress
from convert.compression import STARTS
from convert.compression.calibration import calibration_rows, input_moments
from convert.compression.errors import relative_errors
from convert.compression.low_rank import low_rank, share
from convert.compression.model import compressed, compressed_config, source_depths

FREE = {"depth_norms": True, "depth_biases": True}


def gpt2_weights(n_layer=5, **overrides):
    """The configuration and the random weights of a GPT-2 of n_layer blocks."""
    config = tiny_config(embedding_size=None, layer_schedule=list(range(n_layer)), **overrides)
    return config, random_weights(config, "float32")


def values(weights):
    return {name: np.asarray(tensor) for name, tensor in weights.items()}


@pytest.fixture
def no_ridge(monkeypatch):
    """Distances that are weighted by the moments alone, as numpy's are here."""
    monkeypatch.setattr("convert.compression.low_rank.RIDGE", 1e-12)


def random_moments(config, seed=0):
    """Second moments of random inputs of very different sizes, for all depths."""
    draw = np.random.default_rng(seed)
    moments = {}
    for depth, (name, (inputs, _)) in itertools.product(range(config.n_layer), config.linear_layers.items()):
        rows = draw.normal(size=(2 * inputs, inputs)) * draw.lognormal(sigma=2, size=inputs)
        moments[depth, name] = rows.T @ rows
    return moments


@pytest.mark.parametrize("init", STARTS)
def test_full_rank_gives_back_the_logits_of_transformers(init, tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_head=3, n_layer=4)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "gpt2")
    compress(tmp_path / "gpt2", tmp_path / "new", "cycle:2", 24, init, depth_lora_rank=24, **FREE)
    found = ALGPT2LMHeadModel.from_pretrained(tmp_path / "new").eval()
    assert found.config.n_block == 2 and found.config.embedding_size == 24
    ids = torch.arange(60).view(2, 30)
    assert relative_difference(model(ids).logits, found(ids).logits) < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_any_source_at_full_rank(seed):
    config = random_config(seed)
    weights = random_weights(config, "float64")
    sharing = ("full", "sequence:2", "sandwich")[seed % 3]
    new = compressed_config(config, sharing, config.n_embd, depth_lora_rank=config.n_embd, **FREE)
    found = values(compressed(config, weights, new))
    check_weights(new, found)
    ids = torch.tensor(random_batch(config, padded=False)[0])
    expected = both_models(config, "float64")[1](ids).logits
    assert relative_difference(expected, pytorch_model(new, found)(ids).logits) < 1e-9


def test_the_block_of_every_depth_can_be_named():
    config = tiny_config(layer_schedule=[0, 1, 2, 3])
    assert compressed_config(config, "0, 1,1,2").layer_schedule == [0, 1, 1, 2]
    assert compressed_config(config, "0,0,1,1").to_dict() == compressed_config(config, "sequence:2").to_dict()


def test_what_is_kept_is_kept_to_the_bit():
    config, weights = tiny_config(), random_weights(tiny_config(), "float32")
    new = compressed_config(config, "none")
    found = values(compressed(config, weights, new))
    for name, array in found.items():
        if name in weights and ".h." not in name:
            np.testing.assert_array_equal(array, weights[name])
    for depth, block in enumerate(config.layer_schedule):
        name = "mlp.c_fc.weight"
        np.testing.assert_array_equal(found[f"transformer.h.{depth}.{name}"], weights[f"transformer.h.{block}.{name}"])


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_low_rank_products_leave_what_the_smallest_singular_values_hold(shape, weighted, no_ridge):
    draw = np.random.default_rng(0)
    matrix, root = draw.normal(size=shape), np.eye(shape[1])
    if weighted:
        root = draw.normal(size=(shape[1], shape[1])) * draw.lognormal(size=shape[1])[:, None]
    singular = np.linalg.svd(matrix @ root, compute_uv=False)
    for rank in range(1, min(shape) + 2):
        up, down = low_rank(matrix, rank, root @ root.T if weighted else None)
        assert up.shape == (shape[0], rank) and down.shape == (rank, shape[1])
        left = np.linalg.norm((matrix - up @ down) @ root)
        assert left == pytest.approx(np.linalg.norm(singular[rank:]), rel=1e-6, abs=1e-7 * singular[0])


def distances(matrices, rank, moments=None, **options):
    """The summed squared distance of shared matrices to those of the depths."""
    shared, additions = share(matrices, rank, moments=moments, **options)
    total = 0.0
    for place, matrix in enumerate(matrices):
        left = matrix - shared - (np.matmul(*additions[place]) if rank else 0)
        total += np.trace(left @ (np.eye(len(left.T)) if moments is None else moments[place]) @ left.T)
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_is_the_nearest_matrix_and_svd_is_nearer_with_additions(weighted, no_ridge):
    draw = np.random.default_rng(1)
    matrices = [draw.normal(size=(7, 5)) for _ in range(3)]
    roots = [draw.normal(size=(5, 5)) for _ in matrices]
    moments = [root @ root.T for root in roots] if weighted else None
    best = distances(matrices, 0, moments)
    # Least squares by numpy: the transposed matrix has to give W_d L_d from L_d.
    stacked = np.concatenate([root.T for root in roots] if weighted else [np.eye(5)] * 3)
    wanted = [matrix @ root for matrix, root in zip(matrices, roots, strict=True)] if weighted else matrices
    residual = np.linalg.lstsq(stacked, np.concatenate([product.T for product in wanted]), rcond=None)[1]
    assert best == pytest.approx(residual.sum(), rel=1e-6)
    for rank in (1, 2, 4):
        assert distances(matrices, rank, moments, alternate=True) < 0.999 * distances(matrices, rank, moments)


def test_no_round_of_svd_is_worse(monkeypatch):
    draw = np.random.default_rng(2)
    matrices, found = [draw.normal(size=(8, 6)) for _ in range(4)], []
    for rounds in range(6):
        monkeypatch.setattr("convert.compression.low_rank.ROUNDS", rounds)
        found.append(distances(matrices, 2, alternate=True))
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_never_grow_with_the_rank(init, weighted, no_ridge):
    config, weights = gpt2_weights()
    moments = random_moments(config) if weighted else None
    found = []
    for rank in (0, 1, 3, 8, 24):
        new = compressed_config(config, "cycle:2", depth_lora_rank=rank, **FREE)
        start = "average" if init == "svd" and not rank else init
        errors = relative_errors(
            config, weights, new, values(compressed(config, weights, new, start, moments)), moments
        )
        found.append(np.array(list((errors.outputs if weighted else errors.weights).values())))
    assert found[-1].max() < 1e-6 < 0.1 < found[0].max()
    if init == "svd":
        # Only the sum of squares over the depths cannot grow.
        found = [np.square(errors).reshape(5, 4).sum(0) for errors in found]
    for fewer, more in itertools.pairwise(found):
        assert np.all(more <= fewer + 1e-7)


def test_errors_of_the_embeddings_are_those_of_numpys_svd():
    config, weights = gpt2_weights()
    both = np.concatenate([weights["transformer.wte.weight"], weights["transformer.wpe.weight"]]).astype("float64")
    lengths = np.array([np.linalg.norm(weights[f"transformer.{name}.weight"]) for name in ("wte", "wpe")])
    singular = np.linalg.svd(both, compute_uv=False)
    for size in (1, 5, 12, 24):
        new = compressed_config(config, "none", size)
        errors = relative_errors(config, weights, new, compressed(config, weights, new)).embeddings
        # The head is the embedding, as in the source.
        assert errors["head"] == pytest.approx(errors["tokens"], abs=1e-6)
        left = np.linalg.norm(lengths * [errors["tokens"], errors["positions"]])
        assert left == pytest.approx(np.linalg.norm(singular[size:]), rel=1e-5, abs=1e-5)


def test_what_shared_blocks_start_with():
    config, weights = gpt2_weights(6)
    assert [source_depths(compressed_config(config, "cycle:3"), init) for init in ("first", "stepwise")] == [
        [0, 1, 2],
        # Both ends are kept, as Relaxed Recursive Transformers has it.
        [0, 2, 5],
    ]
    assert source_depths(compressed_config(config, "full"), "stepwise") == [0]
    # In a middle cycle the ends of the loop are, as Mixture-of-Recursions has it.
    assert source_depths(compressed_config(gpt2_weights(10)[0], "middle_cycle:2,3,2"), "stepwise") == [
        *(0, 1),
        *(2, 4, 7),
        *(8, 9),
    ]
    # A cycle that does not fill the depths leaves some of their own between those of the loop.
    assert source_depths(compressed_config(config, "cycle:4"), "stepwise") == [0, 1, 2, 3]
    for init, depths in {"average": (1, 4), "first": (1,), "stepwise": (2,)}.items():
        found = compressed(config, weights, compressed_config(config, "cycle:3"), init)
        for name in ("ln_1.weight", "attn.c_attn.weight", "mlp.c_proj.bias"):
            expected = np.mean([weights[f"transformer.h.{depth}.{name}"] for depth in depths], axis=0)
            np.testing.assert_allclose(found[f"transformer.h.1.{name}"], expected, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moments_are_those_of_what_enters_the_layers_in_pytorch(activation, tmp_path):
    config, weights = gpt2_weights(2, activation_function=activation)
    model, rows = pytorch_model(config, weights), np.random.default_rng(0).integers(97, size=(3, 16))
    entered = {}
    for depth, name in itertools.product(range(2), config.linear_layers):
        layer = model.get_submodule(f"transformer.h.{depth}.{name}")
        layer.register_forward_pre_hook(lambda _, inputs, key=(depth, name): entered.update({key: inputs[0]}))
    model(torch.tensor(rows))
    moments = input_moments(config, weights, rows, [0, 1], tmp_path)
    assert moments.keys() == entered.keys()
    for key, inputs in entered.items():
        inputs = inputs.detach().double().flatten(0, 1).numpy()
        assert relative_difference(inputs.T @ inputs / rows.size, np.asarray(moments[key])) < 1e-5


def test_calibration_lowers_the_errors_of_outputs(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), embedding_size=None, layer_schedule=[0, 1, 2, 3])
    weights = random_weights(config, "float32")
    directory = save_checkpoint(tmp_path / "source", config, weights, text_tokenizer)
    options = {"sharing": "full", "depth_lora_rank": 4, **FREE}
    plain = compress(directory, tmp_path / "plain", **options)
    assert not plain.errors.outputs and plain.perplexities is None
    calibration = {"calibration": "python-docs", "calibration_tokens": 400, "dataset": "python-docs", "length": 40}
    found = compress(directory, tmp_path / "calibrated", **options, **calibration)
    assert "not smaller" not in plain.summary() and "calibrated" not in plain.summary()
    large = compress(directory, tmp_path / "large", **options | {"depth_lora_rank": 24})
    assert "parameters: " in large.summary() and "it is not smaller" in large.summary()
    assert len(found.perplexities) == 2 and found.perplexities[0].tokens == found.perplexities[1].tokens
    # On the same text, the outputs of what was compressed by its weights alone are further off.
    folder = tmp_path / "moments"
    folder.mkdir()
    rows = calibration_rows(open_checkpoint(directory), "python-docs", 400, 40)
    assert rows.shape == (10, 40) and "calibrated on 400 tokens" in found.summary()
    moments = input_moments(config, weights, rows, range(4), folder)
    without = relative_errors(config, weights, *read_checkpoint(tmp_path / "plain"), moments)
    assert (
        found.errors.outputs
        == relative_errors(config, weights, *read_checkpoint(tmp_path / "calibrated"), moments).outputs
    )
    for key, error in found.errors.outputs.items():
        assert error < 0.99 * without.outputs[key]
    assert sum(found.errors.weights.values()) > sum(plain.errors.weights.values())


def test_the_command(capsys, text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), layer_schedule=[0, 1, 2, 3], eos_token_id=0)
    directory = save_checkpoint(tmp_path / "source", config, pretraining_weights(config, "float32"), text_tokenizer)
    command = ("compress", directory, "--output", tmp_path / "new", "--sharing", "sandwich", "--embedding-size", "6")
    code, out, err = run(
        capsys, main_module, *command, "--depth-norms", "--dtype", "bfloat16", "--dataset", "python-docs"
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"wrote {tmp_path / 'new'}, bfloat16" and "largest rounding error" in lines[1]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert table[0] == ["depth", "block", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert [row[:2] for row in table[2:]] == [[str(d), str(b)] for d, b in enumerate([0, 1, 1, 2])]
    # bfloat16 rounds by 2^-9 at most.
    assert all(float(cell) < 0.003 for cell in table[2][2:]) and all(float(cell) > 0.1 for cell in table[3][2:])
    assert "relative errors of the embeddings: tokens 0." in out and "perplexity (stream, length 80, " in out
    checkpoint = open_checkpoint(tmp_path / "new")
    assert checkpoint.dtype == "bfloat16" and checkpoint.architecture == "ALGPT2LMHeadModel"
    assert checkpoint.config.layer_schedule == [0, 1, 1, 2] and checkpoint.config.depth_norms
    assert json.loads((tmp_path / "new" / "config.json").read_text())["auto_map"]
    assert checkpoint.require_tokenizer().eos_token_id == 0
    code, _, err = run(capsys, main_module, *command)
    assert code == 2 and "holds config.json already; give --force" in err


@pytest.mark.slow
def test_no_framework_is_needed(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    directory = save_checkpoint(tmp_path / "source", config, tokenizer=text_tokenizer)
    arguments = ["compress", str(directory), "--output", str(tmp_path / "new"), "--sharing", "full"]
    arguments += ["--calibration", "python-docs", "--calibration-tokens", "200"]
    result = run_without((*TORCH, *TENSORFLOW), f"from convert.cli import main; main({arguments})")
    assert result.returncode == 0 and "attn.c_attn outputs" in result.stdout, result.stderr
    arguments = [*arguments[:6], "--dataset", "python-docs", "--force"]
    result = run_without((*TORCH, *TENSORFLOW), f"from convert.cli import main; main({arguments})")
    assert result.returncode == 2 and "--dataset needs PyTorch or TensorFlow" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sharing", "cycle:9"], "asks for 9 blocks; with n_layer 3 K is 1 to 3"),
        (["--sharing", "wheel"], "unknown sharing pattern 'wheel'"),
        (["--sharing", "0,0,1,1"], "sharing 0,0,1,1 names 4 depths; the source has 3"),
        (["--sharing", "0,2,2"], "layer_schedule must use every block from 0 to 2"),
        (["--sharing", "full", "--embedding-size", "25"], "embedding_size 25 is more than n_embd, 24"),
        (["--sharing", "full", "--depth-lora-rank", "25"], "depth_lora_rank must be 0 to n_embd 24"),
        (["--sharing", "none"], "nothing would be compressed"),
        (["--sharing", "none", "--embedding-size", "4", "--depth-norms"], "--depth-norms is for shared blocks"),
        (["--sharing", "full", "--init", "svd"], "give a --depth-lora-rank"),
        (["--sharing", "full", "--calibration-tokens", "9"], "--calibration-tokens is for a --calibration"),
        (["--sharing", "full", "--length", "9"], "--length is the length of the rows of --calibration and --dataset"),
        (["--sharing", "full", "--calibration", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--sharing", "full", "--dataset", "python-docs"], "tokenizer"),
        (["--sharing", "full", "--base", "other"], "--base is the checkpoint of an adapter"),
    ],
)
def test_wrong_command_lines(arguments, message, capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "source", tiny_config(layer_schedule=[0, 1, 2]))
    code, _, err = run(capsys, main_module, "compress", directory, "--output", tmp_path / "new", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_what_is_no_language_model_is_refused(tmp_path):
    config = tiny_config()
    weights = {**random_weights(config), "score.weight": np.zeros((2, 24))}
    with pytest.raises(InputError, match="the source is of ALGPT2ForSequenceClassification"):
        compressed(config, weights, compressed_config(config, "full"))
    directory = save_checkpoint(tmp_path / "source", config, weights)
    with pytest.raises(InputError, match=r"safetensors: is of ALGPT2ForSequenceClassification"):
        compress(directory, tmp_path / "new", "full")


def test_configurations_that_do_not_fit():
    config, weights = gpt2_weights()
    for other in (tiny_config(n_head=2), tiny_config(layer_schedule=layer_schedule("full", 6))):
        with pytest.raises(InputError, match=r"in the source and .* in the compressed model"):
            compressed(config, weights, other)
