"""Checkpoints of other systems, in both frameworks, against what those systems compute."""

import copy
import json
import shutil
from pathlib import Path

import h5py
import keras_hub
import numpy as np
import pytest
import torch
from models import pytorch_model, random_batch, random_weights, relative_difference, tiny_config
from safetensors.torch import save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2LMHeadModel
from convert import to_pt, to_tf

SEEDS = Path(__file__).parents[3] / "shared" / "checkpoints"
V, P, H, E, LAYERS = 97, 40, 24, 10, 3
GPT2_VALUES = {
    **{"vocab_size": V, "n_positions": P, "n_embd": H, "n_head": 3, "n_layer": LAYERS, "initializer_range": 0.3},
    **{"bos_token_id": 0, "eos_token_id": 0},
}


def gpt2(shared=False, tied=True):
    """A GPT-2 of transformers, whose blocks are all alike if asked for."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**GPT2_VALUES, tie_word_embeddings=tied)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    if shared:
        for block in model.transformer.h[1:]:
            block.load_state_dict(model.transformer.h[0].state_dict())
    return model


class Factorized:
    """GPT-2 between two projections, in a few lines: what both published systems compute."""

    def __init__(self):
        self.gpt2 = gpt2(shared=True)
        self.wte, self.wpe = torch.randn(V, E), torch.randn(P, E)
        self.into, self.out = torch.nn.Linear(E, H), torch.nn.Linear(H, E)
        self.gpt2.transformer.wpe.weight.data.zero_()

    @torch.no_grad()
    def logits(self, ids, mask):
        inputs = self.into(self.wte[ids] + self.wpe[: ids.shape[1]])
        states = self.gpt2.transformer(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        return self.out(states) @ self.wte.T

    def block(self):
        """The tensors of the shared block, by GPT-2's names."""
        return {
            name.removeprefix("transformer.h.0."): tensor
            for name, tensor in self.gpt2.state_dict().items()
            if name.startswith("transformer.h.0.")
        }

    def ends(self):
        return {
            "transformer.wte.weight": self.wte,
            "transformer.wpe.weight": self.wpe,
            "transformer.ln_f.weight": self.gpt2.transformer.ln_f.weight.data,
            "transformer.ln_f.bias": self.gpt2.transformer.ln_f.bias.data,
            "lm_head.weight": self.wte,
        }


def write_config(directory, **values):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**GPT2_VALUES, **values}))


def assert_both_frameworks_give(directory, logits):
    """Directly, and after a conversion; padded and unpadded."""
    converted = directory.parent / "converted"
    for model in (
        ALGPT2LMHeadModel.from_pretrained(directory),
        ALGPT2LMHeadModel.from_pretrained(to_pt(directory, converted / "pt").directory),
        TFALGPT2LMHeadModel.from_pretrained(directory),
        TFALGPT2LMHeadModel.from_pretrained(to_tf(directory, converted / "tf").directory),
    ):
        for padded in (False, True):
            ids, mask = random_batch(model.config, padded=padded)
            expected = logits(torch.tensor(ids), torch.tensor(mask)).detach().numpy()
            if isinstance(model, torch.nn.Module):
                found = model.eval()(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.detach().numpy()
            else:
                found = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
            assert relative_difference(expected[mask == 1], found[mask == 1]) < 1e-5


def gpt2_logits(model):
    return lambda ids, mask: model(ids, attention_mask=mask).logits


class TestTGhattas:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_factorized(self, legacy, tmp_path):
        model, directory = Factorized(), tmp_path / "checkpoint"
        write_config(
            directory,
            **{"model_type": "gpt2", "architectures": ["ALGPT2LMHeadModel"], "factorized_embeds": True},
            **{"small_embedding_size": E, "eval_depth": None, "eos_token_id": 50256},
        )
        tensors = {f"transformer.h.0.{name}": tensor for name, tensor in model.block().items()}
        for theirs, layer in (("transformer.expand_embeddings", model.into), ("compress_embeds", model.out)):
            tensors |= {f"{theirs}.{name}": tensor for name, tensor in layer.state_dict().items()}
        torch.save(
            {**model.ends(), **tensors},
            directory / "pytorch_model.bin",
            _use_new_zipfile_serialization=not legacy,
        )
        assert open_checkpoint(directory).dialect.name == "tGhattas/ALGPT2"
        assert_both_frameworks_give(directory, model.logits)

    def test_shared_only(self, tmp_path):
        model, directory = gpt2(shared=True), tmp_path / "checkpoint"
        write_config(directory, model_type="gpt2", architectures=["ALGPT2LMHeadModel"], factorized_embeds=False)
        state = model.state_dict()
        kept = {name: tensor for name, tensor in state.items() if ".h." not in name or ".h.0." in name}
        torch.save(kept, directory / "pytorch_model.bin")
        assert_both_frameworks_give(directory, gpt2_logits(model))

    @pytest.mark.skipif(not SEEDS.is_dir(), reason="the published checkpoints are not here")
    @pytest.mark.parametrize("name", ["seed-a-factorized", "seed-a-shared"])
    @pytest.mark.parametrize(("file", "depth"), [("expected", {}), ("expected_depth6", {"n_layer": 6})])
    def test_published_checkpoints_give_their_logits(self, name, file, depth):
        expected = np.load(SEEDS / name / f"{file}.npz")
        ids = expected["input_ids"]
        output = ALGPT2LMHeadModel.from_pretrained(SEEDS / name, **depth)(torch.tensor(ids), labels=torch.tensor(ids))
        assert relative_difference(expected["logits"], output.logits) < 1e-6
        assert abs(float(output.loss.detach()) - expected["loss"]) < 1e-5
        model = TFALGPT2LMHeadModel.from_pretrained(SEEDS / name, **depth)
        found = model({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        assert relative_difference(expected["logits"], found) < 1e-6


def pytorch_name(name):
    """The name that transformers gave a TensorFlow variable as it loaded it into PyTorch, up to its version 4.

    As its `convert_tf_weight_name_to_pt_weight_name` of 2020 did: the model is left out, `_._` separates a list from
    its index, and Keras's own words become PyTorch's. The second result is whether the matrix is transposed.
    """
    path = name.removesuffix(":0").replace("_._", "/").split("/")[1:]
    words = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias"}
    return ".".join([*path[:-1], words.get(path[-1], path[-1])]), path[-1] == "kernel"


def write_tf_model(path, names, state):
    """A tf_model.h5 with TensorFlow's names, each with the tensor that PyTorch would have under its own."""
    with h5py.File(path, "w") as file:
        for name in names:
            theirs, transposed = pytorch_name(name)
            array = state[theirs].detach().numpy()
            if "/c_" in name and name.endswith("bias:0"):
                array = array[None]
            # Keras 2 groups variables by layer, with their whole names inside.
            file[f"{name.split('/')[1]}/{name}"] = array.T if transposed else array


def block_names(prefix):
    layers = ("attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")
    names = [f"{prefix}/{layer}/{kind}:0" for layer in layers for kind in ("weight", "bias")]
    return names + [f"{prefix}/{norm}/{kind}:0" for norm in ("ln_1", "ln_2") for kind in ("gamma", "beta")]


def end_names(model):
    ends = ("wte/weight", "wpe/embeddings", "ln_f/gamma", "ln_f/beta")
    return [f"{model}/transformer/{end}:0" for end in ends]


class TestBilal2vec:
    def state(self, model):
        """The state dict of the PyTorch model of this system."""
        tensors = {f"transformer.h.{name}": tensor for name, tensor in model.block().items()}
        for theirs, layer in (("transformer.projection_layer", model.into), ("dense", model.out)):
            tensors |= {f"{theirs}.{name}": tensor for name, tensor in layer.state_dict().items()}
        return {**model.ends(), **tensors}

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pytorch(self, legacy, tmp_path):
        model, directory = Factorized(), tmp_path / "checkpoint"
        write_config(directory, model_type="algpt2", architectures=["ALGPT2LMHeadModel"], embedding_size=E)
        buffers = {
            "transformer.h.attn.bias": torch.ones(1, 1, P, P).tril(),
            "transformer.h.attn.masked_bias": torch.tensor(-1e4),
        }
        path = directory / "pytorch_model.bin"
        torch.save({**self.state(model), **buffers}, path, _use_new_zipfile_serialization=not legacy)
        assert "bilal2vec" in open_checkpoint(directory).dialect.name
        assert_both_frameworks_give(directory, model.logits)

    def test_tensorflow(self, tmp_path):
        model, directory = Factorized(), tmp_path / "checkpoint"
        write_config(directory, model_type="algpt2", embedding_size=E)
        name = "tfalgp_t2lm_head_model"
        names = end_names(name) + block_names(f"{name}/transformer/h")
        names += [
            f"{name}/{layer}/{kind}:0"
            for layer in ("transformer/projection_layer", "dense")
            for kind in ("kernel", "bias")
        ]
        write_tf_model(directory / "tf_model.h5", names, self.state(model))
        assert_both_frameworks_give(directory, model.logits)

    def test_the_tokenizer_tells_the_end_token(self, text_tokenizer, tmp_path):
        model, directory = Factorized(), tmp_path / "checkpoint"
        write_config(directory, model_type="algpt2", embedding_size=E, vocab_size=V, eos_token_id=50256)
        torch.save(self.state(model), directory / "pytorch_model.bin")
        # A vocabulary and merges, as GPT-2's; the first 97 tokens of a larger one.
        vocabulary = dict(sorted(text_tokenizer.get_vocab().items(), key=lambda item: item[1])[:V])
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
        (directory / "merges.txt").write_text("#version: 0.2\n")
        converted = to_pt(directory, tmp_path / "converted").directory
        assert json.loads((converted / "config.json").read_text())["eos_token_id"] == vocabulary["<|endoftext|>"]
        assert json.loads((converted / "generation_config.json").read_text())["eos_token_id"] == 0
        assert TFALGPT2LMHeadModel.from_pretrained(directory).preprocessor.tokenizer.end_token_id == 0
        assert ALGPT2LMHeadModel.from_pretrained(directory).config.eos_token_id == 0


class TestGPT2:
    @pytest.mark.parametrize("tied", [True, False])
    def test_of_transformers(self, tied, tmp_path):
        model = gpt2(tied=tied)
        model.save_pretrained(tmp_path / "checkpoint")
        assert_both_frameworks_give(tmp_path / "checkpoint", gpt2_logits(model))

    def test_as_the_hub_has_it(self, tmp_path):
        """OpenAI's checkpoints have no prefix, no head, and the causal masks."""
        model, directory = gpt2(), tmp_path / "checkpoint"
        write_config(directory, model_type="gpt2")
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, P, P).tril() for layer in range(LAYERS)}
        torch.save({**model.transformer.state_dict(), **masks}, directory / "pytorch_model.bin")
        assert_both_frameworks_give(directory, gpt2_logits(model))

    def test_the_end_token_of_the_hub(self, text_tokenizer, tmp_path):
        """Its tokenizer_config.json leaves the special tokens to the class of the tokenizer."""
        directory = tmp_path / "checkpoint"
        values = {**GPT2_VALUES, "vocab_size": len(text_tokenizer), "eos_token_id": 1}
        GPT2LMHeadModel(GPT2Config(**values)).save_pretrained(directory)
        text_tokenizer.save_pretrained(directory)
        (directory / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
        assert AutoTokenizer.from_pretrained(directory).eos_token_id == 0
        assert ALGPT2LMHeadModel.from_pretrained(directory).config.eos_token_id == 0
        assert TFALGPT2LMHeadModel.from_pretrained(directory).config.eos_token_id == 0
        assert to_pt(directory, tmp_path / "out").directory == tmp_path / "out"
        assert ALGPT2LMHeadModel.from_pretrained(tmp_path / "out").generation_config.eos_token_id == 0

    @pytest.mark.parametrize("name", ["wte/weight:0", "wte/embeddings:0"], ids=["first", "last"])
    def test_of_transformers_in_tensorflow(self, name, tmp_path):
        model, directory = gpt2(), tmp_path / "checkpoint"
        write_config(directory, model_type="gpt2")
        names = end_names("tfgp_t2lm_head_model")
        names[0] = f"tfgp_t2lm_head_model/transformer/{name}"
        for layer in range(LAYERS):
            names += block_names(f"tfgp_t2lm_head_model/transformer/h_._{layer}")
        write_tf_model(directory / "tf_model.h5", names, model.state_dict())
        assert_both_frameworks_give(directory, gpt2_logits(model))

    @pytest.mark.slow
    def test_a_preset_of_keras_hub(self, text_tokenizer, tmp_path):
        state = json.loads(text_tokenizer.backend_tokenizer.to_str())["model"]
        merges = [" ".join(pair) for pair in state["merges"]]
        tokenizer = keras_hub.models.GPT2Tokenizer(vocabulary=state["vocab"], merges=merges)
        backbone = keras_hub.models.GPT2Backbone(len(text_tokenizer), LAYERS, 3, H, 4 * H, max_sequence_length=P)
        draw = np.random.default_rng(0)
        for variable in backbone.trainable_variables:
            variable.assign(draw.normal(scale=0.3, size=variable.shape))
        preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=P)
        model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
        directory = tmp_path / "checkpoint"
        model.save_to_preset(str(directory))
        assert open_checkpoint(directory).dialect.name == "GPT-2 (KerasHub)"
        assert_both_frameworks_give(
            directory,
            lambda ids, mask: torch.tensor(np.asarray(model({"token_ids": ids.numpy(), "padding_mask": mask.numpy()}))),
        )
        converted = TFALGPT2LMHeadModel.from_pretrained(directory)
        text = "The value of an object"
        assert list(converted.preprocessor.tokenizer(text)) == text_tokenizer.encode(text)

    def test_shards_of_transformers(self, tmp_path):
        model = gpt2()
        model.save_pretrained(tmp_path / "checkpoint", max_shard_size="20KB")
        assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 2
        assert_both_frameworks_give(tmp_path / "checkpoint", gpt2_logits(model))

    def test_shards_of_torch(self, tmp_path):
        model, directory = gpt2(), tmp_path / "checkpoint"
        write_config(directory, model_type="gpt2")
        state = list(model.state_dict().items())
        weight_map = {}
        for number, part in enumerate((state[:10], state[10:])):
            torch.save(dict(part), directory / f"pytorch_model-{number}.bin")
            weight_map |= {name: f"pytorch_model-{number}.bin" for name, _ in part}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert_both_frameworks_give(directory, gpt2_logits(model))


@pytest.mark.parametrize("target", ["pt", "tf"])
def test_a_directory_of_one_framework_loads_in_the_other(target, tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "gpt2")
    directory = (to_pt if target == "pt" else to_tf)(tmp_path / "gpt2", tmp_path / "own" / "first").directory
    assert_both_frameworks_give(directory, gpt2_logits(model))
    shutil.rmtree(tmp_path / "own")


def compiled(model):
    return torch.compile(model)


def blocks_compiled(model):
    for index, block in enumerate(model.transformer.h):
        model.transformer.h[index] = torch.compile(block)
    return model


# torch.nn.DataParallel names what it wraps as DistributedDataParallel does.
WRAPPERS = {
    "compiled": compiled,
    "blocks compiled": blocks_compiled,
    "ddp": torch.nn.DataParallel,
    "compiled in ddp": lambda model: torch.nn.DataParallel(compiled(model)),
}


@pytest.mark.parametrize(
    ("kind", "wrapper"),
    [
        *(("own", "compiled"), ("own", "blocks compiled")),
        *(("gpt2", "compiled"), ("gpt2", "ddp"), ("bare gpt2", "compiled in ddp")),
    ],
)
def test_what_a_wrapped_model_saved(wrapper, kind, tmp_path):
    directory = tmp_path / "checkpoint"
    if kind == "own":
        config = tiny_config()
        plain = pytorch_model(config, random_weights(config, "float32"))
        config.save_pretrained(directory)
    else:
        plain = gpt2()
        # GPT2LMHeadModel takes any configuration for its own.
        write_config(directory, architectures=["GPT2LMHeadModel"])
    saved = copy.deepcopy(plain)
    state = (WRAPPERS[wrapper](saved.transformer if kind == "bare gpt2" else saved)).state_dict()
    assert any("_orig_mod." in name or "module." in name for name in state)
    state.pop(next((name for name in state if name.endswith("lm_head.weight")), None), None)
    save_file({name: tensor.clone() for name, tensor in state.items()}, directory / "model.safetensors")
    assert_both_frameworks_give(directory, gpt2_logits(plain))


@pytest.mark.slow
def test_a_tensor_that_is_there_wrapped_and_plain_is_refused(tmp_path):
    model = gpt2()
    write_config(tmp_path, model_type="gpt2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(
        {**state, "_orig_mod.transformer.wte.weight": state["transformer.wte.weight"].clone()},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(InputError, match="some tensors are there twice"):
        open_checkpoint(tmp_path)
