"""Exports of the PyTorch model, run by onnxruntime, beside the TensorFlow model."""

import numpy as np
import onnxruntime
import pytest
from models import (
    batches_of_any_shape,
    both_models,
    both_pretraining_models,
    random_config,
    relative_difference,
    tiny_config,
)

from algpt2 import ALGPT2Config
from algpt2.checkpoints.weights import parameter_count
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.export import export_onnx


@pytest.mark.parametrize(
    ("both", "config"), [(both_models, random_config(5)), (both_pretraining_models, tiny_config())]
)
def test_logits_are_those_of_tensorflow_at_any_shape(both, config, tmp_path):
    tensorflow, pytorch = both(config, "float32")
    export_onnx(pytorch, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {put.name: put.shape for put in session.get_inputs()} == {
        "input_ids": ["batch", "length"],
        "attention_mask": ["batch", "length"],
    }
    assert {put.name: put.shape for put in session.get_outputs()} == {"logits": ["batch", "length", 97]}
    for ids, mask in batches_of_any_shape(tensorflow.config):
        (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})
        outputs = tensorflow({"token_ids": ids, "padding_mask": mask})
        expected = np.asarray(outputs["logits"] if isinstance(outputs, dict) else outputs)
        assert found.shape == expected.shape
        assert relative_difference(expected[mask == 1], found[mask == 1]) < 1e-5


def test_a_model_of_two_positions_takes_one_token_too(tmp_path):
    tensorflow, pytorch = both_models(tiny_config(n_positions=2), "float32")
    export_onnx(pytorch, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch, length in ((1, 1), (3, 1), (1, 2), (3, 2)):
        ids = np.arange(batch * length).reshape(batch, length)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        expected = tensorflow({"token_ids": ids, "padding_mask": np.ones_like(ids)})
        assert relative_difference(np.asarray(expected), session.run(["logits"], inputs)[0]) < 1e-5


def test_the_file_holds_every_weight_once_and_no_path_of_this_machine(tmp_path, recwarn):
    model = ALGPT2LMHeadModel(ALGPT2Config.from_preset("algpt2-tiny")).eval()
    export_onnx(model, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    stored = (tmp_path / "model.onnx").read_bytes()
    assert 1 <= len(stored) / (4 * parameter_count(model.config)) < 1.05
    assert b"modeling_algpt2.py" not in stored
    assert not model.training and not recwarn.list
