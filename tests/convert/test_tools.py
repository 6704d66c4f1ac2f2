"""A plain GPT-2 that `to-gpt2` wrote, as other tools read it: KerasHub, CTranslate2 and transformers 4."""

import json

import numpy as np
import pytest
import torch
from keras_hub.models import GPT2CausalLM
from models import save_checkpoint, tiny_config
from transformers import AutoTokenizer, GPT2LMHeadModel

from convert import to_gpt2

TEXT = "The value of the first argument"


@pytest.fixture(scope="module")
def gpt2(text_tokenizer, tmp_path_factory):
    """The directory of a GPT-2, its model, the ids of a text, and those of its greedy continuation."""
    directory = tmp_path_factory.mktemp("tools")
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=64, n_head=4, eos_token_id=0, bos_token_id=0)
    save_checkpoint(directory / "algpt2", config, tokenizer=text_tokenizer)
    to_gpt2(directory / "algpt2", directory / "gpt2")
    model = GPT2LMHeadModel.from_pretrained(directory / "gpt2").eval()
    ids = AutoTokenizer.from_pretrained(directory / "gpt2")(TEXT)["input_ids"]
    assert ids == text_tokenizer(TEXT)["input_ids"]
    ending = model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False, eos_token_id=None, pad_token_id=0)
    return directory / "gpt2", model, ids, ending[0, len(ids) :].tolist()


def test_files_of_the_tokenizer_are_those_of_gpt2(gpt2, text_tokenizer):
    directory = gpt2[0]
    stored = json.loads((directory / "tokenizer_config.json").read_text())
    assert stored["tokenizer_class"] in ("GPT2Tokenizer", "PreTrainedTokenizerFast")
    assert stored["model_input_names"] == ["input_ids", "attention_mask"]
    assert stored["model_max_length"] == json.loads((directory / "config.json").read_text())["n_ctx"] == 80
    # The added end token aside, which transformers' GPT-2 has in its vocabulary too.
    assert json.loads((directory / "vocab.json").read_text()).items() <= text_tokenizer.get_vocab().items()
    merges = (directory / "merges.txt").read_text().splitlines()
    assert len(merges) - merges[0].startswith("#") == len(
        json.loads(text_tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    )


def test_keras_hub_reads_it(text_tokenizer, tmp_path):
    # KerasHub's reader ties the head to the embedding, as a factorized model's GPT-2 has not: that takes --keras-hub.
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=64, n_head=4, embedding_size=None, eos_token_id=0)
    save_checkpoint(tmp_path / "algpt2", config, tokenizer=text_tokenizer)
    to_gpt2(tmp_path / "algpt2", tmp_path / "gpt2")
    theirs = GPT2CausalLM.from_preset(str(tmp_path / "gpt2"))
    ids = text_tokenizer(TEXT)["input_ids"]
    assert np.array_equal(theirs.preprocessor.tokenizer(TEXT), ids)
    found = np.asarray(theirs({"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)), "int32")}))
    with torch.no_grad():
        expected = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()(torch.tensor([ids])).logits.numpy()
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_ctranslate2_reads_it(gpt2, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2")
    directory, _, ids, ending = gpt2
    ctranslate2.converters.TransformersConverter(str(directory)).convert(str(tmp_path / "ct2"))
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), intra_threads=1)
    tokens = AutoTokenizer.from_pretrained(directory).convert_ids_to_tokens(ids)
    result = generator.generate_batch(
        [tokens], max_length=30, sampling_topk=1, include_prompt_in_result=False, end_token=[]
    )
    assert result[0].sequences_ids[0] == ending
