"""What is saved loads in a process where this project cannot be imported, offline, and computes the same."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from isolation import ROOT, run_without
from models import DEPTHS, pytorch_model, random_weights, tiny_config
from transformers import AutoTokenizer

from algpt2.training.run_directory import ARGUMENTS_FILE
from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel, train
from algpt2_pt.cpu_kernels import use_plain_kernels
from algpt2_tf import TFALGPT2LMHeadModel
from convert import tf2pt

pytestmark = pytest.mark.slow

PROJECT = ("algpt2", "algpt2_pt", "algpt2_tf", "convert")
IDS = torch.arange(20)[None]
LOAD = """
import os
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline
options, ids = {"trust_remote_code": True}, torch.arange(20)[None]
for name in sorted(os.listdir()):
    model_dir, expected = f"{name}/model", np.load(f"{name}/expected.npz")
    AutoConfig.from_pretrained(model_dir, **options)
    model = AutoModelForCausalLM.from_pretrained(model_dir, **options).eval()
    assert np.array_equal(model(ids).logits.detach().numpy(), expected["logits"]), name
    states = AutoModel.from_pretrained(model_dir, **options).eval()(ids).last_hidden_state
    assert np.array_equal(states.detach().numpy(), expected["states"]), name
    greedy = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert np.array_equal(greedy.numpy(), expected["greedy"]), name
    text = pipeline("text-generation", model=model_dir, **options)("The value of", max_new_tokens=5, do_sample=False)
    assert text[0]["generated_text"].startswith("The value of"), text
    model.save_pretrained(f"{name}/again")
    again = AutoModelForCausalLM.from_pretrained(f"{name}/again", **options).eval()
    assert np.array_equal(again(ids).logits.detach().numpy(), expected["logits"]), name
    print(name)
"""


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


def send_away(directory, place):
    """Copy a checkpoint to `model` in a place of its own, with what it computes here beside it."""
    model = use_plain_kernels(ALGPT2LMHeadModel.from_pretrained(directory).eval())
    shutil.copytree(directory, place / "model")
    np.savez(
        place / "expected.npz",
        logits=model(IDS).logits.detach().numpy(),
        states=model.transformer(IDS).last_hidden_state.detach().numpy(),
        greedy=model.generate(IDS, max_new_tokens=10, do_sample=False, pad_token_id=0).numpy(),
    )


def as_a_stranger(place, code):
    """What code prints that runs in a place of its own, without the project."""
    result = run_without(PROJECT, f"import os; os.chdir({str(place)!r})\n{code}")
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained(text_tokenizer, tmp_path_factory):
    """The run directory of a short training, with a checkpoint."""
    directory = tmp_path_factory.mktemp("run") / "run"
    train.main([
        *("--config-override", "n_positions=32", "--depth", "2", "--max-steps", "4", "--save-steps", "2"),
        *("--batch-size", "4", "--vocab-size", "400", "--output-dir", str(directory)),
    ])  # fmt: skip
    assert (directory / ARGUMENTS_FILE).is_file()
    return directory


def test_strangers_load_every_directory_that_is_written(text_tokenizer, trained, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), tie_projections=True, **DEPTHS)
    pytorch_model(config, random_weights(config, "float32")).save_pretrained(tmp_path / "tied")
    ALGPT2ForPreTraining(tiny_config(vocab_size=len(text_tokenizer))).save_pretrained(tmp_path / "pretraining")
    for name in ("tied", "pretraining"):
        text_tokenizer.save_pretrained(tmp_path / name)
    keras = TFALGPT2LMHeadModel.from_pretrained(trained)
    keras.save_pretrained(tmp_path / "keras")
    # As it was written before models carried their code.
    keras.save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["auto_map"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    for file in (tmp_path / "old").glob("*.py"):
        file.unlink()
    sources = {
        "saved, projections tied": tmp_path / "tied",
        "saved, with a sentence-order head": tmp_path / "pretraining",
        "a run": trained,
        "a checkpoint of a run": trained / "checkpoint-2",
        "converted from Keras": tf2pt(tmp_path / "keras").directory,
        "converted from Keras before": tf2pt(tmp_path / "old").directory,
    }
    for name, directory in sources.items():
        send_away(directory, tmp_path / "places" / name)
    assert set(sources) <= set(as_a_stranger(tmp_path / "places", LOAD).splitlines())


LM_EVAL = """
import json
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
results = simple_evaluate(
    "hf",
    model_args="pretrained=model,trust_remote_code=True,device=cpu,dtype=float32",
    tasks=["local_text"],
    task_manager=TaskManager(include_path="tasks", include_defaults=False),
    batch_size=1,
    bootstrap_iters=0,
)
print(json.dumps(results["results"]["local_text"]))
"""


def test_lm_eval_measures_the_loss_of_the_model(trained, tmp_path):
    text = "The value of an object is what it is bound to."
    shutil.copytree(ROOT / "examples" / "lm_eval", tmp_path / "place" / "tasks")
    (tmp_path / "place" / "text.jsonl").write_text(json.dumps({"text": text}) + "\n")
    shutil.copytree(trained, tmp_path / "place" / "model")
    output = as_a_stranger(tmp_path / "place", LM_EVAL)
    found = json.loads(output.strip().splitlines()[-1])["bits_per_byte,none"]
    model = ALGPT2LMHeadModel.from_pretrained(trained).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer.encode(text)]])
    with torch.no_grad():
        log_probabilities = model(ids).logits[0, :-1].log_softmax(-1)
    loss = -log_probabilities[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum()
    assert found == pytest.approx(loss.item() / math.log(2) / len(text.encode()), rel=1e-5)


SFT = """
import os
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
options = SFTConfig(
    output_dir="sft", max_steps=2, logging_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True,
    bf16=False, save_strategy="no", model_init_kwargs={"trust_remote_code": True}, max_length=32,
)
data = Dataset.from_dict({"text": ["The value of an object.", "A name is bound."]})
trainer = SFTTrainer("model", options, train_dataset=data)
trainer.train()
assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
trainer.save_model("tuned")
assert {"config.json", "configuration_algpt2.py", "modeling_algpt2.py"} <= set(os.listdir("tuned"))
"""


def test_trl_trains_it_by_its_name(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "place" / "model")
    as_a_stranger(tmp_path / "place", SFT)
