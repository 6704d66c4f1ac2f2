"""`from_pretrained` as users of transformers call it: by the Auto classes, and with each of its options."""

import shutil

import pytest
import torch
from models import random_batch, random_weights, save_checkpoint, tiny_config
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from algpt2 import ALGPT2Config, InputError
from algpt2.checkpoints.checkpoint import write_checkpoint_weights
from algpt2_pt import ALGPT2LMHeadModel, ALGPT2Model

CONFIG = tiny_config()
WEIGHTS = random_weights(CONFIG, "float32")
IDS = torch.tensor(random_batch(CONFIG)[0])


def logits_of(weights):
    model = ALGPT2LMHeadModel(CONFIG)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    return model.eval()(IDS).logits


def assert_loads(load, expected):
    model = load().eval()
    assert isinstance(model, ALGPT2LMHeadModel)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


@pytest.fixture
def keras_only(tmp_path):
    """A directory with Keras's weights alone."""
    directory = save_checkpoint(tmp_path / "keras", CONFIG, WEIGHTS)
    write_checkpoint_weights(directory, CONFIG, WEIGHTS, "tensorflow")
    (directory / "model.safetensors").unlink()
    return directory


@pytest.fixture
def gpt2(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=80, n_embd=24, n_head=3, n_layer=3)).eval()
    model.save_pretrained(tmp_path / "gpt2")
    return model, tmp_path / "gpt2"


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained])
def test_keras_weights_alone(load, keras_only):
    assert_loads(lambda: load(keras_only), logits_of(WEIGHTS))


def test_the_bare_model_of_keras_weights_alone(keras_only):
    model = AutoModel.from_pretrained(keras_only).eval()
    assert type(model) is ALGPT2Model
    head = torch.from_numpy(WEIGHTS["transformer.wte.weight"])
    torch.testing.assert_close(model(IDS).last_hidden_state @ head.T, logits_of(WEIGHTS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["object", "path", "of GPT-2"])
def test_a_gpt2_with_a_configuration(kind, gpt2, tmp_path):
    model, directory = gpt2
    config = ALGPT2Config.from_preset(
        "gpt2", vocab_size=97, n_positions=80, n_embd=24, n_head=3, layer_schedule=[0, 1, 2]
    )
    config.save_pretrained(tmp_path / "config")
    given = {"object": config, "path": str(tmp_path / "config"), "of GPT-2": model.config}[kind]
    assert_loads(lambda: ALGPT2LMHeadModel.from_pretrained(directory, config=given), model(IDS).logits)
    if kind == "object":
        assert_loads(lambda: AutoModelForCausalLM.from_pretrained(directory, config=given), model(IDS).logits)


def test_a_configuration_of_another_shape_is_refused(gpt2):
    with pytest.raises(InputError, match=r"gpt2.*do not fit the configuration") as refused:
        AutoModelForCausalLM.from_pretrained(gpt2[1], config=CONFIG)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained])
@pytest.mark.parametrize("kind", ["own", "keras"])
def test_a_subfolder(load, kind, keras_only, tmp_path):
    save_checkpoint(tmp_path / "own", CONFIG, WEIGHTS)
    assert_loads(lambda: load(tmp_path, subfolder=kind), logits_of(WEIGHTS))


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained])
def test_a_variant(load, tmp_path):
    others = random_weights(CONFIG, "float32", seed=1)
    directory = save_checkpoint(tmp_path / "model", CONFIG, WEIGHTS)
    model = ALGPT2LMHeadModel.from_pretrained(save_checkpoint(tmp_path / "other", CONFIG, others))
    model.save_pretrained(directory, variant="ema")
    assert (directory / "model.ema.safetensors").exists()
    assert_loads(lambda: load(directory), logits_of(WEIGHTS))
    assert_loads(lambda: load(directory, variant="ema"), logits_of(others))


def test_a_variant_of_another_system_is_refused(gpt2):
    with pytest.raises(InputError, match="variant='fp16' is for ALGPT2's own checkpoints, which this is not"):
        ALGPT2LMHeadModel.from_pretrained(gpt2[1], variant="fp16")


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained])
@pytest.mark.parametrize("kind", ["own", "keras"])
def test_a_revision(load, kind, keras_only, tmp_path):
    """A cache as the hub's library keeps it: two revisions, with weights of their own."""
    others = random_weights(CONFIG, "float32", seed=1)
    repository = tmp_path / "cache" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    for branch, weights in (("main", others), ("trained", WEIGHTS)):
        commit = branch.encode().hex().ljust(40, "0")
        (repository / "refs" / branch).write_text(commit)
        save_checkpoint(repository / "snapshots" / commit, CONFIG, weights)
    if kind == "keras":
        shutil.rmtree(repository / "snapshots" / commit)
        shutil.copytree(keras_only, repository / "snapshots" / commit)
    assert_loads(lambda: load("someone/model", cache_dir=tmp_path / "cache"), logits_of(others))
    assert_loads(
        lambda: load("someone/model", cache_dir=tmp_path / "cache", revision="trained"),
        logits_of(WEIGHTS),
    )


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained])
def test_gguf_is_refused(load, tmp_path):
    directory = save_checkpoint(tmp_path / "model", CONFIG, WEIGHTS)
    with pytest.raises(InputError, match="ALGPT2 reads no GGUF") as refused:
        load(directory, config=CONFIG, gguf_file="model.gguf")
    assert "\n" not in str(refused.value)


def test_a_bin_file_is_checked_by_its_checksums(tmp_path):
    directory = save_checkpoint(tmp_path, CONFIG, WEIGHTS)
    (directory / "model.safetensors").unlink()
    torch.save({name: torch.from_numpy(array) for name, array in WEIGHTS.items()}, directory / "pytorch_model.bin")
    assert_loads(lambda: AutoModelForCausalLM.from_pretrained(directory), logits_of(WEIGHTS))
    content = bytearray((directory / "pytorch_model.bin").read_bytes())
    content[content.index(WEIGHTS["transformer.wpe.weight"].tobytes()) + 100] ^= 1
    (directory / "pytorch_model.bin").write_bytes(content)
    for load in (AutoModelForCausalLM.from_pretrained, ALGPT2LMHeadModel.from_pretrained):
        with pytest.raises(InputError, match=r"pytorch_model\.bin: damaged \(the checksum of"):
            load(directory)
