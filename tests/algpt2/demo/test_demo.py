"""What the demo shows, beside transformers and PyTorch; and its page, in a browser without a network."""

import math
import socket
import threading
import time

import numpy as np
import pytest
import torch
from browsers import chromium, wait
from command_lines import run
from models import pytorch_model, random_weights, save_checkpoint, tiny_config

from algpt2.data.encoding import encode
from algpt2.demo import __main__ as command
from algpt2.demo import losses, models
from algpt2.demo.models import open_models, streamed
from algpt2.errors import InputError
from algpt2.generation.continuation import Sampling
from convert import pt2tf

# With characters of several tokens, and more than the context of 80.
TEXT = "The value of the naïve “object” is\n\n  <b>what</b> returns it. 日本語 " * 8


@pytest.fixture(scope="module")
def checkpoint(text_tokenizer, tmp_path_factory):
    config = tiny_config(vocab_size=len(text_tokenizer), layer_schedule=[0, 0])
    directory = tmp_path_factory.mktemp("checkpoints") / "pytorch"
    return save_checkpoint(directory, config, random_weights(config, "float32"), text_tokenizer)


@pytest.fixture(scope="module")
def keras_checkpoint(checkpoint):
    """The same model, with Keras's weights alone."""
    pt2tf(checkpoint, checkpoint.parent / "keras")
    return checkpoint.parent / "keras"


@pytest.fixture(scope="module")
def both(checkpoint, keras_checkpoint):
    return open_models([str(checkpoint), str(keras_checkpoint)])


def expected_losses(ids, config):
    """By PyTorch, row by row."""
    model, rows = pytorch_model(config, random_weights(config, "float32")), []
    for start in range(0, len(ids), config.n_positions):
        row = torch.tensor(ids[start : start + config.n_positions])
        with torch.no_grad():
            logits = model(row[None]).logits[0, :-1]
        rows += [math.nan, *torch.nn.functional.cross_entropy(logits, row[1:], reduction="none").tolist()]
    return np.array(rows)


def test_each_checkpoint_is_run_by_the_framework_of_its_weights(both):
    assert [model.name for model in both] == ["pytorch", "keras"]
    assert both[0].summary.endswith("depth 2 of 1 block, PyTorch") and both[1].summary.endswith("TensorFlow")


def test_the_losses_of_tokens_are_those_of_pytorch_in_both_frameworks(both, text_tokenizer):
    for model in both:
        ids, found = model.token_losses(TEXT)
        assert ids == encode(text_tokenizer, TEXT) and len(ids) > 2 * model.config.n_positions
        np.testing.assert_allclose(found, expected_losses(ids, model.config), rtol=1e-4)
        with pytest.raises(InputError, match="no token to predict"):
            model.token_losses("")


def test_the_parts_of_a_text_make_it_up_and_keep_its_loss(both, text_tokenizer):
    ids, found = both[0].token_losses(TEXT)
    found[np.isnan(found)] = 0
    parts = losses.pieces(text_tokenizer, TEXT, ids, found)
    assert "".join(part for part, _ in parts) == TEXT
    assert sum(loss for _, loss in parts) == pytest.approx(found.sum())
    # The tokens of one character are one part.
    assert len(parts) < len(ids)
    page = losses.coloured(parts, parts)
    assert "<b>" not in page and page.count("rgba(214, 69, 51, 0.00)") == len(parts)


def test_continuations_are_those_of_generate(both, text_tokenizer):
    for model in both:
        parts = list(model.continue_text("The value", Sampling(), 20))
        inputs = text_tokenizer("The value", return_tensors="pt")
        weights = random_weights(model.config, "float32")
        ids = pytorch_model(model.config, weights).generate(
            inputs.input_ids,
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=text_tokenizer.eos_token_id,
            pad_token_id=0,
        )
        assert "".join(parts) == text_tokenizer.decode(ids[0], skip_special_tokens=True)
        assert len(parts) > 5


def test_depths_are_those_of_the_evaluation(both):
    depths = both[0].losses_at_depths(TEXT)
    assert list(depths) == [1, 2, 3, 4]
    found = both[0].token_losses(TEXT)[1]
    assert depths[2] == pytest.approx(np.nanmean(found), rel=1e-5)
    # The configuration of depth 3 over the same block.
    config = tiny_config(vocab_size=both[0].config.vocab_size, layer_schedule=[0, 0, 0])
    weights = expected_losses(both[0].token_losses(TEXT)[0], config)
    assert depths[3] == pytest.approx(np.nanmean(weights), rel=1e-4)
    assert both[1].losses_at_depths(TEXT)[3] == pytest.approx(depths[3], rel=1e-4)


def test_a_stream_that_is_closed_ends_its_thread():
    before, values = threading.active_count(), streamed(lambda put: [put(number) for number in range(10**9)])
    assert next(values) == 0
    values.close()
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        list(streamed(lambda put: put(1 / 0)))


def test_without_gradio_it_says_what_to_install(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = run(capsys, command, checkpoint)
    assert code == 2 and "needs gradio; run pip install 'algpt2[demo]'" in err
    code, _, err = run(capsys, command, "DIR", "--port", 99999)
    assert code == 2 and "--port: invalid port from 0 to 65535 value: '99999'" in err


def test_an_address_that_is_not_here_and_a_port_that_is_taken(capsys, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setattr("algpt2.demo.command.open_models", lambda *arguments: [])
    monkeypatch.setattr("algpt2.demo.command.page", lambda models: gradio.Blocks())
    import gradio

    for port in (0, 7860):
        code, _, err = run(capsys, command, "DIR", "--host", "192.0.2.1", "--port", port)
        assert code == 2 and f"cannot serve at 192.0.2.1:{port} (" in err and "give another --host" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run(capsys, command, "DIR", "--port", taken.getsockname()[1])
    assert code == 2 and "Address already in use" in err and "give another --port" in err


@pytest.mark.slow
def test_wrong_checkpoints_are_told(capsys, tmp_path):
    pytest.importorskip("gradio")
    code, _, err = run(capsys, command, tmp_path / "nothing")
    assert code == 2 and "no such directory" in err and "Traceback" not in err


@pytest.fixture(scope="module")
def address(both):
    """The address of a page that is served in this process."""
    pytest.importorskip("gradio")
    from algpt2.demo.page import page

    blocks = page(both).queue()
    _, url, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield url
    blocks.close()


def test_the_page_computes_one_thing_at_a_time(both):
    pytest.importorskip("gradio")
    from algpt2.demo.page import page

    # A model keeps the settings of the text that it continues; only the button that stops it does not wait.
    listeners = [function for function in page(both).fns.values() if function.fn]
    assert len(listeners) == 4
    assert {(function.concurrency_id, function.concurrency_limit) for function in listeners} == {("models", 1)}


def fill(driver, selector, value):
    code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    field = wait(driver, lambda: driver.find_elements("css selector", selector))[0]
    wait(driver, field.is_displayed)
    driver.execute_script(code, field, value)
    wait(driver, lambda: field.get_attribute("value") == value)


@pytest.mark.slow
def test_the_page_continues_colours_and_draws(address, both):
    with chromium() as driver:
        driver.get(address)

        def find(selector):
            return driver.find_elements("css selector", selector)

        def open_tab(name):
            wait(driver, lambda: [tab for tab in find("button[role=tab]") if tab.text == name])[0].click()

        open_tab("Continue")
        fill(driver, "#prompt textarea", "The value")
        find("#continue")[0].click()
        for number in (0, 1):
            wait(driver, lambda n=number: len(find(f"#continuation-{n} textarea")[0].get_attribute("value")) > 60)
            assert find(f"#continuation-{number} textarea")[0].get_attribute("value").startswith("The value")
        open_tab("Loss of tokens")
        fill(driver, "#loss-text textarea", TEXT)
        find("#loss")[0].click()
        wait(driver, lambda: find("#losses span[title]"))
        assert len(find("#losses .losses")) == 3
        # Both frameworks compute the same model.
        assert f"pytorch: loss {np.nanmean(both[0].token_losses(TEXT)[1]):.3f}" in find("#losses")[0].text
        assert find("#losses .losses")[0].get_attribute("textContent") == TEXT
        open_tab("Perplexity")
        fill(driver, "#figure-text textarea", TEXT)
        find("#draw")[0].click()
        wait(driver, lambda: find("#by-position img") and find("#by-depth img"))


@pytest.mark.slow
def test_stop_ends_the_stream_and_the_page_goes_on(address, monkeypatch):
    computed, whole = [], models.continue_text

    def slowly(generate, tokenizer, prompt, count, length, put):
        def put_later(part):
            # A hundred tokens take ten seconds.
            time.sleep(0.1)
            computed.append(part)
            put(part)

        return whole(generate, tokenizer, prompt, count, length, put_later)

    monkeypatch.setattr(models, "continue_text", slowly)
    with chromium() as driver:
        driver.get(address)

        def shown(number):
            return driver.find_element("css selector", f"#continuation-{number} textarea").get_attribute("value")

        def press(name):
            driver.find_element("css selector", f"#{name}").click()

        fill(driver, "#prompt textarea", "The value")
        press("continue")
        wait(driver, lambda: len(shown(0)) > len("The value") + 3)
        press("stop")
        time.sleep(1)
        text, count = shown(0), len(computed)
        time.sleep(1)
        # The model has stopped too, within a token or two, and not only the page.
        assert text.startswith("The value") and shown(0) == text and len(computed) == count < 40
        assert shown(1) == ""
        monkeypatch.setattr(models, "continue_text", whole)
        fill(driver, "#prompt textarea", "It returns")
        press("continue")
        for number in (0, 1):
            wait(driver, lambda n=number: shown(n).startswith("It returns") and len(shown(n)) > 60)


@pytest.mark.slow
def test_a_port_that_is_taken_is_told(both):
    pytest.importorskip("gradio")
    import socket

    from algpt2.demo.page import launch, page

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(InputError, match="give another --port"):
        launch(page(both), "127.0.0.1", taken.getsockname()[1])
