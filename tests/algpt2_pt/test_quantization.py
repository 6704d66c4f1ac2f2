"""Int8 weights for inference in PyTorch."""

import pytest
import torch
from models import tiny_config

from algpt2.data.corpus import read_corpus
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.quantization import quantize_int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quantized_model_computes_and_is_neither_trained_nor_saved(dtype, tmp_path):
    model, ids = quantize_int8(ALGPT2LMHeadModel(tiny_config()).to(dtype).eval()), torch.arange(9)[None]
    assert model(ids).logits.dtype == torch.float32
    with pytest.raises(RuntimeError, match="does not require grad"):
        model.train()(ids, labels=ids).loss.backward()
    with pytest.raises(InputError, match="the model is quantized"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_int8_weights_predict_nearly_the_same(text_tokenizer):
    """The likeliest token and the loss, of a model that has learned something."""
    torch.manual_seed(0)
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=48, embedding_size=32, layer_schedule=[0, 0])
    trained = ALGPT2LMHeadModel(config)
    text = "".join(read_corpus("python-docs").train)[:20_000]
    ids = torch.tensor(text_tokenizer.encode(text)[: 64 * 64]).view(64, 64)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    # More would learn the text by heart, where every rounding shows.
    for _ in range(50):
        trained(ids, labels=ids, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    trained.eval()
    with torch.no_grad():
        expected = trained(ids, labels=ids)
        found = quantize_int8(trained)(ids, labels=ids)
    assert expected.loss < 4.5 < torch.log(torch.tensor(float(config.vocab_size)))
    # The perplexity within 0.5%.
    assert 0 < abs(found.loss - expected.loss) < 0.005
    assert (found.logits.argmax(-1) == expected.logits.argmax(-1)).float().mean() > 0.9
    prompt = ids[:1, :8]
    output = trained.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False)
    assert output.shape == (1, 16)
