"""A plain GPT-2 as other tools read it: of `to-gpt2` KerasHub and CTranslate2, of `export --to gguf` llama.cpp."""

import json
import urllib.request

import numpy as np
import pytest
import torch
from keras_hub.models import GPT2CausalLM
from models import save_checkpoint, tiny_config
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2LMHeadModel

from algpt2_pt import ALGPT2LMHeadModel
from convert import to_gpt2
from convert.export import export
from convert.exports import FORMATS

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


def llama_cpp(path, threads=1):
    """What asks llama.cpp's server, in this process, with a GGUF file: a function of a path and a dict."""
    xllamacpp = pytest.importorskip("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path, options.n_ctx, options.n_parallel, options.verbosity = str(path), 80, 1, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(options)

    def ask(what, **values):
        content, header = json.dumps(values).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{server.listening_address}/{what}", content, header)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return ask


@pytest.fixture(scope="module")
def tokens_of_all_kinds(text_tokenizer, tmp_path_factory):
    """The directory of an ALGPT2 whose tokenizer has added tokens, special and not, and fewer tokens than its model."""
    tokenizer = type(text_tokenizer)(tokenizer_object=text_tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    config = tiny_config(vocab_size=len(tokenizer) + 7, n_embd=64, n_head=4, eos_token_id=0, bos_token_id=0)
    return save_checkpoint(tmp_path_factory.mktemp("llama") / "algpt2", config, tokenizer=tokenizer)


ODD_TEXTS = [
    *("The value of an object", "", " ", "\n\n  \t x", "   both ends   ", "\r\nline\r\n", "\x00\x01", "don't I'VE"),
    *(
        "é漢字\U0001f600 naïve",
        "x\u00a0y\u200bz",
        "ﬁ ǅ Ⅷ",
        "a\u0301e\u0308",
        "مرحبا שלום",
        "123456 1,234.5",
        "snake_case(x)",
    ),
    *("a<|endoftext|>b", "<|tool|>self.x <|tool|>", "<|user|>hi", "[PAD603]"),
]


def test_llama_cpp_splits_texts_in_the_same_way(tokens_of_all_kinds, tmp_path):
    export(tokens_of_all_kinds, "gguf", tmp_path / "model.gguf")
    ask, tokenizer = llama_cpp(tmp_path / "model.gguf"), AutoTokenizer.from_pretrained(tokens_of_all_kinds)
    for text in ODD_TEXTS:
        found = ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]
        assert found == tokenizer(text)["input_ids"], text


@pytest.mark.parametrize("quantize", [None, "f16", "q8_0", "q4_0"])
def test_llama_cpp_computes_the_same(quantize, tokens_of_all_kinds, tmp_path):
    export(tokens_of_all_kinds, "gguf", tmp_path / "model.gguf", quantize)
    ask, model = llama_cpp(tmp_path / "model.gguf"), ALGPT2LMHeadModel.from_pretrained(tokens_of_all_kinds).eval()
    prompt = AutoTokenizer.from_pretrained(tokens_of_all_kinds)(TEXT)["input_ids"]
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = model.generate(torch.tensor([prompt]), **options)[0].tolist()
    greedy = {"temperature": 0, "cache_prompt": False}
    if quantize is None:
        answer = ask("completion", prompt=prompt, n_predict=40, return_tokens=True, **greedy)
        assert answer["tokens"] == ids[len(prompt) :]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    expected, differences = logits.log_softmax(-1), []
    for length in range(len(prompt), len(ids)):
        answer = ask("completion", prompt=ids[:length], n_predict=1, n_probs=model.config.vocab_size, **greedy)
        # It tells nothing where the likeliest token is only a part of a character.
        for step in answer.get("completion_probabilities", []):
            found = {token["id"]: token["logprob"] for token in step["top_logprobs"]}
            differences += [abs(value - float(expected[length - 1, token])) for token, value in found.items()]
    assert len(differences) > 10 * model.config.vocab_size
    # llama.cpp looks gelu up in a table of half precision.
    tolerance = FORMATS["gguf"].quantizations[quantize or "f16"][0]
    assert max(differences) < tolerance * float(logits.abs().max())
