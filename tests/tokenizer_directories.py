"""Directories with tokenizers in the forms in which they are found, and texts to try them on."""

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

TEXTS = [
    "", " ", "a", "The value of an object", "  two  spaces, \t a tab \n\n  and\nlines ", "I'm we'll NAÏVE naïve",
    "<|endoftext|>", "a<|endoftext|>b <|endoftext|> c", "a</s>b </s>  <pad> <extra>x <extra> <s>y", "<mask> <mask>x",
    "日本語のテキスト、Привет мир, ألف ١٢٣, 👩‍👩‍👧 𝄞 ☃", "e\u0301 \u00a0\u3000\u2028 x\x1cy\x0c", "one\r\ntwo\rthree",
    "def f(x):\n    return x + 1  # 3.14159\n" * 3,
]  # fmt: skip


def tokenizer_state(tokenizer):
    """The content of the tokenizer.json of a tokenizer of transformers."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_gpt2(directory, state, end="<|endoftext|>", **files):
    """GPT-2's vocab.json and merges.txt, and other JSON files by their names without the ending."""
    vocabulary = {end if token == "<|endoftext|>" else token: i for token, i in state["model"]["vocab"].items()}
    write_json(directory / "vocab.json", vocabulary)
    merges = "\n".join(" ".join(pair) for pair in state["model"]["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)


def write_fast(directory, state, change=None, **files):
    """A tokenizer.json, changed by a function of the `tokenizers.Tokenizer`, and other JSON files."""
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if change:
        change(tokenizer)
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)


def _template(tokenizer, template):
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<|endoftext|>",)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _ends(tokenizer):
    _template(tokenizer, "$A <|endoftext|>")


def _starts_and_ends(tokenizer):
    _template(tokenizer, "<|endoftext|> $A <|endoftext|>")


def _other_rules(tokenizer):
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=True)])


def _padded_and_cut(tokenizer):
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(5)


def _bert(directory, state):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "value", "of", "an", "object", "##s", "a", "一"]
    (directory / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "eos_token": "[SEP]"})


def _llama(directory, state):
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}, "▁": 259, "a": 260}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})


ROLES = ("bos_token", "eos_token", "unk_token")
END = {"eos_token": "<|endoftext|>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
# By name, a function of a directory and of the content of a tokenizer.json whose token 0 is <|endoftext|>.
DIRECTORIES = {
    "gpt2 by its config": lambda d, s: write_gpt2(d, s, config={"model_type": "gpt2"}),
    "prefix space": lambda d, s: write_gpt2(d, s, tokenizer_config={**GPT2, "add_prefix_space": True}),
    "another end token": lambda d, s: write_gpt2(
        d, s, "</s>", tokenizer_config=GPT2, special_tokens_map=dict.fromkeys(ROLES, "</s>")
    ),
    "special tokens": lambda d, s: write_gpt2(
        d, s, tokenizer_config=GPT2, added_tokens={"<extra>": 600, "<pad>": 601},
        special_tokens_map={"pad_token": {"content": "<pad>", "lstrip": True, "rstrip": False, "normalized": False}},
    ),
    "bos": lambda d, s: write_gpt2(d, s, tokenizer_config={**GPT2, "add_bos_token": True}),
    "added tokens in the config": lambda d, s: write_gpt2(
        d, s, tokenizer_config={
            **GPT2, "mask_token": "<mask>", "model_max_length": 77, "additional_special_tokens": ["<s>"],
            "added_tokens_decoder": {
                "600": {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "special": True},
                "601": {"content": "<extra>", "lstrip": False, "rstrip": True, "normalized": True, "special": False},
            },
        },
    ),
    "unsplit special tokens": lambda d, s: write_gpt2(d, s, tokenizer_config={**GPT2, "split_special_tokens": True}),
    "tokenizer.json alone": lambda d, s: write_fast(d, s),
    "tokenizer.json of GPT-2": lambda d, s: write_fast(d, s, config={"model_type": "gpt2"}),
    "prefix space beside tokenizer.json": lambda d, s: write_fast(
        d, s, tokenizer_config={"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True}
    ),
    "an end behind every text": lambda d, s: write_fast(d, s, _ends, tokenizer_config=END),
    "a start and an end": lambda d, s: write_fast(d, s, _starts_and_ends, tokenizer_config=END),
    "other rules": lambda d, s: write_fast(d, s, _other_rules),
    "padded and cut": lambda d, s: write_fast(d, s, _padded_and_cut),
    "bert": _bert,
    "llama": _llama,
}  # fmt: skip
# How many tokens the tokenizer puts behind a text.
BEHIND = {"an end behind every text": 1, "a start and an end": 1, "bert": 1}
