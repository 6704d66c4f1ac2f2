"""ONNX in transformers.js, by Node; and the page, in a browser without a network."""

import json
import re

import pytest
import torch
from browsers import ASSETS, chromium, node, require_npm_packages, static_server, wait
from command_lines import run
from models import pytorch_model, random_weights, save_checkpoint, tiny_config

import convert.__main__
from algpt2.checkpoints.weights import parameter_count
from algpt2.data.encoding import encode
from algpt2.generation.continuation import continue_tokens
from convert.export import export
from convert.exports import web

PROMPT = "The value of the"
GENERATE = """
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";
const [path, dtype, prompt, count] = process.argv.slice(1);
env.allowRemoteModels = false;
env.localModelPath = path;
const tokenizer = await AutoTokenizer.from_pretrained("onnx");
const model = await AutoModelForCausalLM.from_pretrained("onnx", { dtype });
const inputs = tokenizer(prompt);
const ids = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
console.log(JSON.stringify(ids.tolist()[0].map(Number)));
"""


@pytest.fixture(scope="module")
def config(text_tokenizer):
    return tiny_config(vocab_size=len(text_tokenizer), n_positions=112, n_embd=64, n_head=2, layer_schedule=[0, 0])


@pytest.fixture(scope="module")
def checkpoint(config, text_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint") / "my-model"
    return save_checkpoint(directory, config, random_weights(config, "float32"), text_tokenizer)


@pytest.fixture(scope="module")
def greedy(config, text_tokenizer):
    """A function from a text and a number of tokens to the ids that PyTorch continues it with, past the context."""
    model = pytorch_model(config, random_weights(config, "float32"))

    def generate(context, count, emit):
        ids = torch.tensor([context])
        options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": text_tokenizer.eos_token_id}
        return model.generate(ids, **options, pad_token_id=0)[0, len(context) :].tolist()

    def continued(text, count):
        ids, stop = encode(text_tokenizer, text), text_tokenizer.eos_token_id
        return continue_tokens(generate, ids, count, config.n_positions, stop, put=lambda token: None)

    return continued


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The directory of an ONNX export in every precision, as transformers.js takes it."""
    directory = tmp_path_factory.mktemp("models")
    for quantize in (None, "int8", "q4"):
        export(checkpoint, "onnx", directory / f"of {quantize}", quantize)
        (directory / "onnx" / "onnx").mkdir(parents=True, exist_ok=True)
        for file in (directory / f"of {quantize}").rglob("*.*"):
            file.rename(directory / "onnx" / file.relative_to(directory / f"of {quantize}"))
    return directory


def test_greedy_ids_in_node_are_those_of_pytorch(exported, greedy, text_tokenizer):
    expected = greedy(PROMPT, 100)
    assert len(expected) == 100
    found = json.loads(node(GENERATE, exported, "fp32", PROMPT, 100))
    assert found == encode(text_tokenizer, PROMPT) + expected


@pytest.mark.parametrize("dtype", ["q8", "q4"])
def test_quantized_models_run_in_node(dtype, exported, config):
    ids = json.loads(node(GENERATE, exported, dtype, PROMPT, 20))
    assert len(ids) > 4 and all(0 <= token < config.vocab_size for token in ids)


@pytest.fixture(scope="module")
def site(checkpoint, tmp_path_factory):
    require_npm_packages()
    output = tmp_path_factory.mktemp("site") / "below" / "here"
    return export(checkpoint, "web", output, quantize="none", assets=ASSETS)


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


class Page:
    """The page as its user sees it."""

    def __init__(self, driver, address):
        self.driver = driver
        driver.get_log("browser")
        driver.get(address)

    def at(self, name):
        return self.driver.find_element("id", name)

    def state(self):
        return self.driver.find_element("tag name", "body").get_attribute("data-state")

    def reaches(self, *states):
        return wait(self.driver, lambda: self.state() in states and self.state())

    def text(self):
        return self.at("text").get_attribute("value")

    def slide(self, name, value):
        event = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.driver.execute_script(event, self.at(name), value)

    def run(self, text, temperature=0, top_p=1, length=100):
        for name, value in (("temperature", temperature), ("top-p", top_p), ("length", length)):
            self.slide(name, value)
        self.at("text").clear()
        self.at("text").send_keys(text)
        self.at("run").click()
        self.reaches("ready", "error")
        return self.text()


@pytest.fixture(scope="module")
def ready(browser, site):
    """The page with its model loaded, from a folder of a server, and the paths that it asked for."""
    with static_server(site.parent.parent) as (address, asked):
        page = Page(browser, f"{address}/below/here/")
        assert page.reaches("ready", "error") == "ready", page.at("status").text
        page.asked = asked
        yield page


@pytest.mark.slow
def test_the_page_continues_as_pytorch_does_past_the_context(ready, greedy, text_tokenizer):
    # More than the context of 112 tokens.
    ids = greedy(PROMPT, 150)
    assert len(ids) == 150
    expected = text_tokenizer.decode(encode(text_tokenizer, PROMPT) + ids, skip_special_tokens=True)
    assert ready.run(PROMPT, length=150).replace("\ufffd", "") == expected.replace("\ufffd", "")
    assert re.fullmatch(r"Ready: 150 tokens, [\d.]+ tokens/s", ready.at("status").text)
    assert "longer than the 112 tokens" in ready.at("notice").text and "last 56" in ready.at("notice").text
    ready.at("undo").click()
    assert ready.text() == PROMPT and not ready.at("notice").is_displayed()
    assert ready.at("text") == ready.driver.switch_to.active_element
    ready.run(PROMPT, length=20)
    assert not ready.at("notice").is_displayed()


def test_sampling_follows_its_controls(ready):
    likeliest = ready.run(PROMPT, length=30)
    assert len({ready.run(PROMPT, temperature=2, length=30) for _ in range(3)} | {likeliest}) == 4
    # So small a share holds the likeliest token alone.
    assert ready.run(PROMPT, temperature=1, top_p=0.0001, length=30) == likeliest
    assert ready.run(PROMPT, temperature=1e-4, top_p=0.95, length=30) == likeliest


@pytest.mark.parametrize("way", ["button", "key"])
def test_it_stops_when_it_is_told_to(ready, way):
    from selenium.webdriver.common.keys import Keys

    # So tiny a model is done with the 500 of the control before one can stop it.
    ready.driver.execute_script("arguments[0].max = 5000", ready.at("length"))
    ready.slide("length", 5000)
    ready.at("text").clear()
    ready.at("text").send_keys(PROMPT, Keys.CONTROL, Keys.ENTER)
    wait(ready.driver, lambda: len(ready.text()) > len(PROMPT))
    if way == "button":
        # The keyboard's user finds the way to stop where the way to start was.
        ready.driver.execute_script("arguments[0].click()", ready.at("stop"))
    else:
        ready.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert ready.reaches("ready", "error") == "ready"
    count = int(re.search(r"(\d+) token", ready.at("status").text)[1])
    assert 0 < count < 5000 and ready.text().startswith(PROMPT)
    assert ready.at("run").is_displayed() and not ready.at("stop").is_displayed()


def test_an_empty_text_is_asked_for(ready):
    assert ready.run("") == ""
    assert ready.state() == "error" and ready.at("status").text == "Type some text first."
    assert len(ready.run(PROMPT, length=10)) > len(PROMPT)


def test_what_is_known_of_the_model_is_told(ready, site, config):
    facts, size = ready.at("facts").text, (site / "model" / "onnx" / "model.onnx").stat().st_size
    count = f"{parameter_count(config):,}"
    for fact in (count, "2 applications of 1 block", "112 tokens", f"{size / 1e6:.1f} MB, weights in float32"):
        assert fact in facts, facts
    assert ready.at("name").text == "my-model" and "my-model" in ready.driver.title


def test_everything_has_a_name_for_those_who_do_not_see_it(ready):
    names = [ready.at(name).accessible_name for name in ("text", "temperature", "top-p", "length", "run", "undo")]
    assert names == ["Text", "Temperature", "Top-p", "Length", "Continue", "Undo"]


def test_nothing_comes_from_elsewhere_and_the_console_is_quiet(ready):
    # The browser's network ends at this machine.
    assert "/below/here/lib/transformers.min.js" in ready.asked
    assert ready.driver.get_log("browser") == []


def test_a_missing_model_is_told_and_tried_again(browser, site, tmp_path):
    with static_server(site) as (address, _):
        model = site / "model" / "onnx" / "model.onnx"
        model.rename(tmp_path / "away.onnx")
        page = Page(browser, address)
        assert page.reaches("ready", "error") == "error"
        assert "model.onnx" in page.at("status").text and not page.at("run").is_enabled()
        (tmp_path / "away.onnx").rename(model)
        page.at("retry").click()
        assert page.reaches("ready") and len(page.run(PROMPT, length=10)) > len(PROMPT)


def test_opened_as_a_file_it_says_what_to_do(browser, site):
    page = Page(browser, (site / "index.html").as_uri())
    assert page.reaches("error") and "python -m http.server" in page.at("status").text


@pytest.mark.slow
def test_the_default_precision_runs_on_a_phone_in_the_dark(checkpoint, tmp_path):
    require_npm_packages()
    site = export(checkpoint, "web", tmp_path / "site", assets=ASSETS)
    with chromium(390, 800, dark=True) as driver, static_server(site) as (address, _):
        page = Page(driver, address)
        assert page.reaches("ready", "error") == "ready", page.at("status").text
        assert len(page.run(PROMPT, temperature=0.8, top_p=0.95, length=20)) > len(PROMPT)
        assert "weights in int8" in page.at("facts").text
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        body = driver.find_element("tag name", "body")
        colors = [body.value_of_css_property(name) for name in ("background-color", "color")]
        back, ink = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
        assert back < 200 < 500 < ink


def npm_packages(directory, nested=False):
    """Files named as npm installs them; `nested` puts those of ONNX Runtime below transformers.js."""
    (name, _), file, _ = web.LIBRARIES["transformers"]
    transformers = directory / "node_modules" / name
    runtime = (transformers if nested else directory) / "node_modules" / "onnxruntime-web"
    for place in (transformers / file, runtime / web.LIBRARIES["runtime"][1], runtime / web.LIBRARIES["wasm"][1]):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(place.name)
    return directory


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("inner", ["", "node_modules"])
def test_only_the_libraries_that_are_needed_are_copied(nested, inner, checkpoint, capsys, tmp_path):
    assets = npm_packages(tmp_path / "npm", nested)
    (assets / "node_modules" / "left-pad").mkdir()
    output = tmp_path / "site"
    arguments = ("--to", "web", "--output", output, "--assets", assets / inner, "--no-verify")
    assert run(capsys, convert.__main__, "export", checkpoint, *arguments)[0] == 0
    described = json.loads((output / "model.json").read_text())
    for role, (_, file, _) in web.LIBRARIES.items():
        # The content is the name that the file had.
        assert (output / described["libraries"][role]).read_text() == file.rpartition("/")[2]
    assert len(list((output / "lib").iterdir())) == 3


def test_without_assets_the_libraries_are_named_on_a_cdn_in_one_version(checkpoint, capsys, tmp_path):
    output = tmp_path / "site"
    code, out, err = run(capsys, convert.__main__, "export", checkpoint, "--to", "web", "--output", output)
    assert code == 0 and "Kullback-Leibler" in out, err
    assert not (output / "lib").exists()
    described = json.loads((output / "model.json").read_text())
    for address in described["libraries"].values():
        assert re.fullmatch(
            r"https://cdn\.jsdelivr\.net/npm/(@huggingface/)?[\w-]+@\d+\.\d+\.\d+[\w.-]*/dist/.*", address
        )
    # All else is beside the page: no other address stands in it.
    for file in ("index.html", "page.js", "model.js", "style.css"):
        assert not re.search(r"https?://(?!localhost)", (output / file).read_text())


def test_the_versions_are_those_that_transformers_js_asks_for():
    require_npm_packages()
    package = json.loads((ASSETS / "node_modules" / web.TRANSFORMERS_JS[0] / "package.json").read_text())
    assert package["version"] == web.TRANSFORMERS_JS[1]
    assert package["dependencies"]["onnxruntime-web"] == web.ONNXRUNTIME_WEB[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--assets", "empty"), r"has no @huggingface/transformers/dist/\S+; run npm install --ignore-scripts"),
        (("--quantize", "f16"), "--quantize f16 is not for --to web, which takes int8, q4"),
        (("--length", "9"), "--length is for --to litert, not for web"),
    ],
)
def test_wrong_input_writes_nothing(options, message, checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code, _, err = run(capsys, convert.__main__, "export", checkpoint, "--to", "web", "--output", "site", *options)
    assert code == 2 and re.search(message, err) and "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_checkpoint_without_a_tokenizer_is_refused(config, capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "bare", config)
    code, _, err = run(capsys, convert.__main__, "export", directory, "--to", "web", "--output", tmp_path / "site")
    assert code == 2 and "tokenizer" in err and not (tmp_path / "site").exists()


def test_assets_are_for_the_page_alone(checkpoint, capsys, tmp_path):
    arguments = ("--to", "onnx", "--output", tmp_path / "onnx", "--assets", tmp_path)
    code, _, err = run(capsys, convert.__main__, "export", checkpoint, *arguments)
    assert code == 2 and "--assets is for --to web, not for onnx" in err
