"""Products by oneDNN, against PyTorch's own in float64."""

import contextlib
import copy
import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from models import close as is_close
from models import pytorch_model, random_batch, random_weights, tiny_config
from torch import nn
from torch.autograd import forward_ad
from torch.profiler import profile

from algpt2_pt import cpu_kernels
from algpt2_pt.cpu_kernels import (
    chosen_kernels,
    is_bfloat16_fast,
    multiply_transposed,
    onednn_rows,
    use_fast_kernels,
    use_plain_kernels,
)
from algpt2_pt.modeling_algpt2 import ALGPT2DepthLinear

close = functools.partial(is_close, tolerance=1e-6)
ONEDNN = "mkldnn::_linear_pointwise"


def operations(function):
    """The names of PyTorch's operations in a call, and what it returns."""
    with profile() as profiler:
        result = function()
    return {event.key for event in profiler.key_averages()}, result


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """oneDNN is taken on every processor, for products of any size."""
    monkeypatch.setattr(cpu_kernels, "onednn_rows", lambda: sys.maxsize)
    monkeypatch.setattr(cpu_kernels, "SMALL_MATRIX", 0)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return use_fast_kernels(nn.Linear(40, 50))


@pytest.mark.parametrize("shape", [(1, 1, 40), (2, 3, 40), (64, 40), (40,), (0, 40)])
def test_products_and_gradients_are_those_of_float64(layer, shape):
    inputs = torch.randn(shape, requires_grad=True)
    weights = torch.randn(*shape[:-1], 50)
    precise = use_plain_kernels(copy.deepcopy(layer)).double()
    precise_inputs = inputs.detach().double().requires_grad_()
    used, outputs = operations(lambda: layer(inputs))
    assert (ONEDNN in used) == (inputs.numel() > 0)
    (outputs * weights).sum().backward()
    expected = precise(precise_inputs)
    (expected * weights).sum().backward()
    assert outputs.shape == expected.shape
    pairs = [(outputs, expected), (inputs.grad, precise_inputs.grad)]
    pairs += [(layer.weight.grad, precise.weight.grad), (layer.bias.grad, precise.bias.grad)]
    for found, value in pairs:
        assert found.numel() == 0 or close(found, value)
    product = multiply_transposed(inputs, layer.weight)
    assert product.numel() == 0 or close(product, precise_inputs @ precise.weight.T)


def test_a_model_computes_the_same_with_and_without():
    config = tiny_config()
    model = use_fast_kernels(pytorch_model(config, random_weights(config, "float32")))
    precise = pytorch_model(config, random_weights(config, "float32")).double()
    ids = torch.tensor(random_batch(config)[0])

    def gradients(model, **options):
        model.zero_grad()
        model(ids, labels=ids, **options).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    expected = gradients(precise)
    for options in ({}, {"skip_logits": True}):
        used, found = operations(lambda options=options: gradients(model, **options))
        assert ONEDNN in used and "aten::addmm" not in used
        assert all(close(f, e, tolerance=1e-5) for f, e in zip(found, expected, strict=True))
    with torch.backends.mkldnn.flags(enabled=False):
        used, found = operations(lambda: gradients(model))
    assert ONEDNN not in used and "aten::addmm" in used
    assert all(close(f, e, tolerance=1e-5) for f, e in zip(found, expected, strict=True))
    used, found = operations(lambda: gradients(use_plain_kernels(model)))
    assert ONEDNN not in used and {type(m) for m in model.modules() if isinstance(m, nn.Linear)} == {nn.Linear}
    assert all(close(f, e, tolerance=1e-5) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("most", [0, 2, 3])
@pytest.mark.parametrize("is_recorded", [True, False])
def test_products_of_more_rows_stay_with_mkl(is_recorded, most, layer, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "onednn_rows", lambda: most)
    inputs = torch.randn(1, 3, 40)
    with torch.set_grad_enabled(is_recorded):
        for compute in (layer, functools.partial(multiply_transposed, weight=layer.weight)):
            used, found = operations(functools.partial(compute, inputs))
            bias = layer.bias.double() if compute is layer else 0
            assert (ONEDNN in used) == (most == 3)
            assert close(found, inputs.double() @ layer.weight.double().T + bias)


@pytest.mark.parametrize(
    ("rows", "numbers", "is_small"), [(3, 40 * 50 + 1, True), (3, 40 * 50, False), (2, 40 * 50 + 1, False)]
)
def test_small_products_stay_with_pytorch(rows, numbers, is_small, layer, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "SMALL_ROWS", rows)
    monkeypatch.setattr(cpu_kernels, "SMALL_MATRIX", numbers)
    inputs = torch.randn(1, 3, 40)
    used, found = operations(lambda: layer(inputs))
    assert (ONEDNN in used) != is_small
    assert close(found, inputs.double() @ layer.weight.double().T + layer.bias.double())


@pytest.mark.parametrize(
    ("maker", "instructions", "rows"),
    [
        ("GenuineIntel", "AVX512", 0),
        ("GenuineIntel", "AVX2", 0),
        ("AuthenticAMD", "AVX512", sys.maxsize),
        ("AuthenticAMD", "AVX2", 128),
    ],
)
def test_mkl_is_fast_on_processors_of_intel_and_for_many_rows_without_avx512(maker, instructions, rows, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path, **_: f"vendor_id : {maker}")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    assert onednn_rows.__wrapped__() == (rows if torch.backends.mkl.is_available() else sys.maxsize)


def test_gelu_of_gpt2_is_one_kernel():
    config = tiny_config(activation_function="gelu_new")
    model = pytorch_model(config, random_weights(config))
    ids = torch.tensor(random_batch(config)[0])
    used, expected = operations(lambda: use_plain_kernels(model)(ids).logits)
    assert "aten::gelu" not in used
    used, found = operations(lambda: use_fast_kernels(model)(ids).logits)
    assert "aten::gelu" in used and close(found, expected, tolerance=1e-12)


def test_second_derivatives_are_those_of_float64(layer):
    precise = use_plain_kernels(copy.deepcopy(layer)).double()
    inputs = torch.randn(8, 40)

    def second(call, inputs, weight):
        (first,) = torch.autograd.grad((call(inputs) ** 3).sum(), inputs, create_graph=True)
        return torch.autograd.grad((first**2).sum(), [inputs, weight])

    found = second(lambda inputs: layer(inputs), inputs.requires_grad_(), layer.weight)
    expected = second(precise, inputs.detach().double().requires_grad_(), precise.weight)
    assert all(close(f, e, tolerance=1e-5) for f, e in zip(found, expected, strict=True))


def test_forward_mode_differentiation(layer):
    inputs, tangent = torch.randn(2, 5, 40)
    for is_recorded in (True, False):
        with torch.set_grad_enabled(is_recorded), forward_ad.dual_level():
            found = forward_ad.unpack_dual(layer(forward_ad.make_dual(inputs, tangent))).tangent
        assert close(found, tangent.double() @ layer.weight.double().T)


def test_gradients_of_each_sample_by_torch_func(layer):
    inputs = torch.randn(5, 40)
    found = torch.func.vmap(torch.func.grad(lambda inputs: (layer(inputs) ** 2).sum()))(inputs)
    assert close(found, 2 * layer(inputs).double() @ layer.weight.double())


@pytest.mark.parametrize("autocasts", [True, False])
@pytest.mark.parametrize("rows", [cpu_kernels.FEW_ROWS, 150])
def test_bfloat16_is_multiplied_in_float32_where_the_cpu_has_no_instructions(layer, autocasts, rows, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu_kernels, "is_bfloat16_fast", lambda: False)
    monkeypatch.setattr(cpu_kernels, "onednn_rows", lambda: 0)
    widened = cpu_kernels._widened_linear
    monkeypatch.setattr(cpu_kernels, "_widened_linear", lambda *values: calls.append(values) or widened(*values))
    inputs, upstream = torch.randn(1, rows, 40), torch.randn(1, rows, 50).bfloat16()
    # PyTorch rounds the factors, and sums in float32.
    rounded = copy.deepcopy(use_plain_kernels(layer)).bfloat16().double()
    rounded_inputs = inputs.bfloat16().double().requires_grad_()
    expected = rounded(rounded_inputs)
    expected.backward(upstream.double())
    layer, inputs = use_fast_kernels(layer), inputs.clone()
    if not autocasts:
        layer, inputs = layer.bfloat16(), inputs.bfloat16()
    inputs.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
        found = layer(inputs)
        with torch.no_grad():
            assert torch.equal(layer(inputs), found)
    assert len(calls) == (2 if rows > cpu_kernels.FEW_ROWS else 0) and found.dtype == torch.bfloat16
    found.backward(upstream)
    assert inputs.grad.dtype == layer.weight.grad.dtype == (torch.float32 if autocasts else torch.bfloat16)
    pairs = [(found, expected), (inputs.grad, rounded_inputs.grad), (layer.weight.grad, rounded.weight.grad)]
    for value, reference in [*pairs, (layer.bias.grad, rounded.bias.grad)]:
        assert close(value, reference, tolerance=2**-7)


@pytest.mark.parametrize("few", [0, sys.maxsize])
def test_what_a_depth_adds_is_multiplied_by_the_same_kernels_but_for_a_few_rows(few, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "FEW_ROWS", few)
    config = tiny_config(depth_lora_rank=3, depth_biases=True)
    weights = random_weights(config, "float32")
    model = use_fast_kernels(pytorch_model(config, weights))
    ids = torch.tensor(random_batch(config)[0])
    used, found = operations(lambda: model(ids).logits)
    assert ONEDNN in used and bool({"aten::addmm", "aten::mm"} & used) == bool(few)
    assert close(found, pytorch_model(config, weights).double()(ids).logits, tolerance=1e-5)
    used, found = operations(lambda: use_plain_kernels(model)(ids).logits)
    assert ONEDNN not in used and not any("Fast" in type(module).__name__ for module in model.modules())


def test_what_a_depth_adds_is_exported_for_any_number_of_rows():
    layer = use_fast_kernels(ALGPT2DepthLinear(tiny_config(depth_lora_rank=3), 40, 50))
    nn.init.normal_(layer.up)
    nn.init.normal_(layer.down)
    rows = {0: torch.export.Dim("rows", min=2, max=64)}
    exported = torch.export.export(layer, (torch.ones(3, 40), torch.ones(3, 50)), dynamic_shapes=(rows, rows))
    for count in (2, 50):
        values = torch.randn(count, 40), torch.randn(count, 50)
        assert close(exported.module()(*values), values[1] + values[0] @ layer.down.T @ layer.up.T, tolerance=1e-5)


@pytest.mark.parametrize("inputs", [torch.tensor(1.0), torch.ones(2, 40, dtype=torch.bfloat16)])
def test_what_pytorch_refuses_is_refused(layer, inputs, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "FEW_ROWS", 0)
    monkeypatch.setattr(cpu_kernels, "is_bfloat16_fast", lambda: False)
    if inputs.dtype == torch.bfloat16:
        layer.weight.data = layer.weight.data.bfloat16()
    with pytest.raises(RuntimeError):
        layer(inputs)


def test_autocast_leaves_float64(layer, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "is_bfloat16_fast", lambda: False)
    layer, inputs = layer.double(), torch.randn(20, 40, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs)
    assert found.dtype == torch.float64 and close(found, inputs @ layer.weight.T + layer.bias, tolerance=1e-15)


@pytest.mark.parametrize("exception", ["none", "gradients", "gradients inside", "float32", "another thread"])
def test_chosen_kernels_give_the_products_of_bfloat16(layer, exception):
    inputs = torch.randn(3, 40)
    expected = inputs.bfloat16().double() @ layer.weight.bfloat16().double().T + layer.bias.bfloat16().double()
    if exception != "float32":
        layer, inputs = layer.bfloat16(), inputs.bfloat16()
    with torch.set_grad_enabled(exception == "gradients"), chosen_kernels(nn.Sequential(layer)):
        if exception == "another thread":
            with ThreadPoolExecutor(1) as executor:
                used, found = executor.submit(operations, lambda: layer(inputs)).result()
        else:
            with torch.set_grad_enabled(exception.startswith("gradients")):
                used, found = operations(lambda: layer(inputs))
    assert found.requires_grad == (exception.startswith("gradients") or exception == "another thread")
    is_packed = exception == "none" and is_bfloat16_fast()
    assert (ONEDNN in used) == (is_packed or exception == "float32")
    assert close(found, expected, tolerance=2**-7)
    assert ONEDNN not in operations(lambda: layer.bfloat16()(inputs.bfloat16()))[0]


@pytest.mark.parametrize("exception", ["none", "more rows", "float64", "autocast", "autocast inside", "switched off"])
def test_kernels_are_chosen_once_for_a_few_rows_of_float32(layer, exception, monkeypatch):
    choices = []
    choose = cpu_kernels._kernel
    monkeypatch.setattr(cpu_kernels, "_kernel", lambda *values: choices.append(values) or choose(*values))
    inputs = torch.randn(1, cpu_kernels.FEW_ROWS + (exception == "more rows"), 40)
    if exception == "float64":
        layer.double()
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    off = torch.backends.mkldnn.flags(enabled=exception != "switched off")
    with torch.no_grad(), off, autocast(enabled=exception == "autocast"), chosen_kernels(layer):
        before = len(choices)
        with autocast(enabled=exception.startswith("autocast")):
            if exception == "float64":
                # What PyTorch refuses is refused.
                with pytest.raises(RuntimeError):
                    layer(inputs)
                inputs, before = inputs.double(), len(choices)
            used, found = operations(lambda: layer(inputs))
    assert (ONEDNN in used) == (exception in ("none", "more rows"))
    assert (len(choices) == before) == (exception in ("none", "float64"))
    expected = inputs.double() @ layer.weight.double().T + layer.bias.double()
    assert close(found, expected, tolerance=2**-6 if exception.startswith("autocast") else 1e-6)


def test_kernels_are_chosen_once_for_generation_inside_generation(layer, monkeypatch):
    choices = []
    choose = cpu_kernels._choose
    monkeypatch.setattr(cpu_kernels, "_choose", lambda layer: choices.append(layer) or choose(layer))
    layer = layer.bfloat16()
    inputs = torch.randn(3, 40).bfloat16()
    with torch.no_grad(), chosen_kernels(layer):
        expected = layer(inputs)

        def inner():
            with chosen_kernels(nn.Sequential(layer)):
                return layer(inputs)

        assert torch.equal(inner(), expected) and choices == [layer]
        assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_whose_weight_is_another_than_when_its_kernel_was_chosen(layer, dtype):
    layer, inputs = layer.to(dtype), torch.randn(3, 40)
    with torch.no_grad(), chosen_kernels(layer):
        layer.weight = nn.Parameter(2 * layer.weight.float())
        layer.bias.data = layer.bias.float()
        expected = inputs.double() @ layer.weight.double().T + layer.bias.double()
        assert close(layer(inputs), expected)
        # What has no rows, and what PyTorch refuses.
        assert layer(inputs[:0]).shape == (0, 50)
        with pytest.raises(RuntimeError):
            layer(torch.tensor(1.0))


def test_nothing_is_kept_in_the_layout_of_onednn(layer):
    kept = []
    inputs = torch.randn(8, 40, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(inputs)
    assert {tensor.data_ptr() for tensor in kept} == {inputs.data_ptr(), layer.weight.data_ptr()}


def test_anomalies_can_be_detected(layer):
    with torch.autograd.set_detect_anomaly(True):
        layer(torch.randn(8, 40)).sum().backward()
    assert close(layer.bias.grad, torch.full((50,), 8.0))


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_hooks_of_a_layer_are_called(layer, register):
    calls = []
    getattr(layer, register)(lambda *arguments: calls.append(1) and None)
    inputs = torch.randn(8, 40, requires_grad=True)
    used, found = operations(lambda: layer(inputs))
    found.sum().backward()
    assert ONEDNN in used and calls == [1]


EXCEPTIONS = {
    "another forward": lambda layer: setattr(layer, "forward", functools.partial(nn.Linear.forward, layer)),
    "float64": lambda layer: layer.double(),
    "autocast": lambda layer: torch.autocast("cpu", torch.bfloat16),
    "switched off": lambda layer: torch.backends.mkldnn.flags(enabled=False),
}


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_all_else_is_left_to_pytorch(layer, exception, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "is_bfloat16_fast", lambda: True)
    made = EXCEPTIONS[exception](layer)
    inputs = torch.randn(8, 40, dtype=layer.weight.dtype, requires_grad=True)
    try:
        with made if hasattr(made, "__enter__") else contextlib.nullcontext():
            used, found = operations(lambda: layer(inputs))
            assert ONEDNN not in used and torch.equal(found, layer(inputs))
        found.float().sum().backward()
    finally:
        if hasattr(made, "remove"):
            made.remove()


def test_compiled_code_is_left_to_pytorch(layer):
    inputs = torch.randn(8, 40)
    used, found = operations(lambda: torch.compile(layer, fullgraph=True, backend="eager")(inputs))
    assert ONEDNN not in used and close(found, layer(inputs))
