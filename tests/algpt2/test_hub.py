"""Uploads to a local stand-in of the hub's API, and downloads from it."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from models import pytorch_model, random_weights, read_checkpoint, tiny_config
from safetensors.numpy import load

from algpt2.checkpoints.directories import find_checkpoint
from algpt2.configuration import CODE_FILES
from algpt2.errors import InputError
from algpt2.hub import main
from algpt2.training.model_card import write_model_card

TOKEN = "hf_standInTokenThatMayWrite"
READ_ONLY = "hf_standInTokenThatMayRead"


class Handler(BaseHTTPRequestHandler):
    """As much of the hub's HTTP API as uploads and downloads of models use."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        hub, body = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            return self.reply({"error": "no"}, 403 if token == READ_ONLY else 401)
        hub.authorized.append(self.path)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            hub.visibility[name] = asked.get("visibility")
            hub.repositories.setdefault(name, {"main": {}})
            return self.reply({"url": f"{hub.address}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/(.+/.+)/branch/(.+)", self.path):
            hub.repositories[match[1]][match[2]] = {}
            return self.reply({})
        if re.fullmatch(r"/api/models/.+/preupload/.+", self.path):
            modes = [
                {"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return self.reply({"files": modes})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{hub.address}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(.+/.+)/commit/(.+)", self.path):
            files = hub.repositories[match[1]][match[2]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
            return self.reply({"commitUrl": f"{hub.address}/{match[1]}/commit/{'1' * 40}", "commitOid": "1" * 40})
        return self.reply({"error": f"unknown {self.path}"}, 500)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.full:
            return self.reply({"error": "full"}, 413)
        assert hashlib.sha256(body).hexdigest() == self.path.removeprefix("/lfs/")
        self.server.objects[self.path.removeprefix("/lfs/")] = body
        self.reply({})

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            if match[1] in self.server.repositories:
                files = self.server.repositories[match[1]]["main"]
                siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
                return self.reply({"id": match[1], "sha": "1" * 40, "siblings": siblings, "private": False})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.server.repositories[match[1]]["main"]
            return self.reply(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.server.repositories.get(match[1], {"main": {}})["main"].get(match[2])
            if content is not None:
                return self.send(content, etag=hashlib.sha1(content).hexdigest())
        return self.reply({"error": "not found"}, 404, **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def reply(self, content, status=200, **headers):
        self.send(json.dumps(content).encode(), status, **headers)

    def send(self, content, status=200, etag=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "1" * 40)
        if etag:
            self.send_header("ETag", f'"{etag}"')
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


def mode(path):
    return "lfs" if path.endswith((".safetensors", ".h5", ".png")) else "regular"


@pytest.fixture
def stand_in():
    """A running server; `repositories` maps names to branches to files to their content."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.objects, server.visibility, server.authorized = {}, {}, {}, []
    server.full, server.asked = False, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(stand_in, monkeypatch):
    """The stand-in, as the hub of this process."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return stand_in


@pytest.fixture(scope="module")
def run_directory(text_tokenizer, tmp_path_factory):
    """A run with the intermediate checkpoints and logs that stay at home."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    config = tiny_config(vocab_size=len(text_tokenizer))
    pytorch_model(config, random_weights(config, "float32")).save_pretrained(directory)
    text_tokenizer.save_pretrained(directory)
    for name in ("checkpoint-6/model.safetensors", "wandb/run/log", "tensorboard/events", ".run.x1/config.json"):
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text("local")
    (directory / "history.jsonl").write_text('{"step": 1, "tokens": 2}\n')
    return directory


def exit_code(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code
    return 0


def test_upload_of_a_run(hub, run_directory, capfd, caplog):
    caplog.set_level("DEBUG")
    assert exit_code(run_directory, "me/model", "--private") == 0
    files = hub.repositories["me/model"]["main"]
    expected = {path.name for path in run_directory.iterdir() if path.is_file()}
    assert set(files) == expected and {"config.json", "model.safetensors", "tokenizer.json"} <= expected
    assert all((run_directory / name).read_bytes() == content for name, content in files.items())
    assert hub.visibility["me/model"] == "private"
    assert hub.authorized
    out, err = capfd.readouterr()
    assert f"wrote {hub.address}/me/model/commit" in out
    assert TOKEN not in out + err + caplog.text


@pytest.mark.parametrize("task", ["language-model", "classify"])
def test_the_card_of_an_upload_names_the_repository(task, hub, run_directory, tmp_path):
    directory = shutil.copytree(run_directory, tmp_path / "run")
    arguments = {"dataset": "python-docs", "task": task}
    write_model_card(directory, tiny_config(), arguments, [], "pytorch")
    own = '\n\nMy words: `AutoTokenizer.from_pretrained("gpt2")` na\u00efve.\n'
    card = (directory / "README.md").read_text(encoding="utf-8") + own
    (directory / "README.md").write_text(card, encoding="utf-8")
    assert exit_code(directory, "me/model") == 0
    uploaded = hub.repositories["me/model"]["main"]["README.md"].decode()
    assert uploaded == card.replace(f'"{directory}"', '"me/model"') != card
    assert (directory / "README.md").read_text(encoding="utf-8") == card


def test_upload_to_a_branch(hub, run_directory, capsys):
    assert exit_code(run_directory, "me/model", "--revision", "step-90000") == 0
    assert "config.json" in hub.repositories["me/model"]["step-90000"]
    assert not hub.repositories["me/model"]["main"] and hub.visibility["me/model"] is None


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_wrong", "does not accept the token (401)"), (READ_ONLY, "refuses the token (403)"), (None, "no token")],
)
def test_tokens_that_may_not_write(token, message, hub, run_directory, capfd, caplog, monkeypatch):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", token or "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    assert exit_code(run_directory, "me/model") == 2
    out, err = capfd.readouterr()
    assert message in err and "Traceback" not in err
    assert token is None or token not in out + err + caplog.text
    assert not hub.repositories


@pytest.mark.parametrize("state", ["offline", "unreachable"])
def test_no_hub(state, hub, run_directory, capsys, monkeypatch):
    if state == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert exit_code(run_directory, "me/model") == 2
    err = capsys.readouterr().err
    assert "the hub cannot be reached" in err and ("HF_HUB_OFFLINE" in err) == (state == "offline")


def test_an_upload_that_breaks_off(hub, run_directory, capsys):
    hub.full = True
    assert exit_code(run_directory, "me/model") == 2
    assert "not uploaded" in capsys.readouterr().err and not hub.repositories["me/model"]["main"]


@pytest.mark.parametrize(
    ("directory", "repository", "message"),
    [
        ("none", "me/model", "none: no such directory"),
        ("empty", "me/model", "empty: holds no config.json"),
        ("RUN", "me/model/of mine", "not the name of a repository"),
    ],
)
def test_wrong_arguments(directory, repository, message, hub, run_directory, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    directory = run_directory if directory == "RUN" else tmp_path / directory
    assert exit_code(directory, repository) == 2
    assert message in capsys.readouterr().err and not hub.repositories


def test_local_files_only_asks_nobody(hub, run_directory, tmp_path, monkeypatch):
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(InputError, match="the Hugging Face hub does not give it"):
        find_checkpoint("me/model", cache_dir=tmp_path, local_files_only=True)
    assert not hub.asked
    files = [path for path in run_directory.iterdir() if path.is_file()]
    hub.repositories["me/model"] = {"main": {path.name: path.read_bytes() for path in files}}
    downloaded = find_checkpoint("me/model", cache_dir=tmp_path)
    assert (downloaded / "model.safetensors").is_file() and hub.asked
    hub.asked.clear()
    assert find_checkpoint("me/model", cache_dir=tmp_path, local_files_only=True) == downloaded
    assert not hub.asked


@pytest.mark.slow
def test_both_frameworks_push_and_load(stand_in, run_directory, tmp_path):
    script = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from algpt2.checkpoints.directories import find_checkpoint
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2LMHeadModel
from algpt2_tf.weights import canonical_weights

run, work = sys.argv[1:]
pytorch = ALGPT2LMHeadModel.from_pretrained(run)
pytorch.push_to_hub("me/pt", private=True)
AutoTokenizer.from_pretrained(run).push_to_hub("me/pt")
pytorch.save_pretrained(f"{work}/pt-saved", push_to_hub=True)
keras = TFALGPT2LMHeadModel.from_pretrained(run)
keras.push_to_hub("me/tf", private=True)
keras.save_pretrained(f"{work}/tf-saved", push_to_hub=True)

np.savez(f"{work}/loaded.npz", **canonical_weights(TFALGPT2LMHeadModel.from_pretrained("me/tf")))
ids = torch.arange(8)[None]
loaded = ALGPT2LMHeadModel.from_pretrained("me/pt")
assert torch.equal(loaded(ids).logits, pytorch.eval()(ids).logits)
assert AutoModelForCausalLM.from_pretrained("me/pt").config.n_layer == 3
assert (find_checkpoint("me/tf") / "model.weights.h5").is_file()
"""
    environment = {
        **os.environ, "HF_ENDPOINT": stand_in.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", script, run_directory, tmp_path],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "DEBUG" in result.stderr and TOKEN not in result.stdout + result.stderr
    pushed = {name: set(branches["main"]) for name, branches in stand_in.repositories.items()}
    assert set(pushed) == {"me/pt", "me/tf", "me/pt-saved", "me/tf-saved"}
    assert all({"config.json", "generation_config.json", *CODE_FILES} <= files for files in pushed.values())
    assert "model.safetensors" in pushed["me/pt"] & pushed["me/pt-saved"]
    assert {"model.weights.h5", "tokenizer.json"} <= pushed["me/tf"] & pushed["me/tf-saved"]
    assert "tokenizer.json" in pushed["me/pt"]
    assert stand_in.visibility["me/tf"] == "private" and stand_in.visibility["me/tf-saved"] is None
    weights = read_checkpoint(run_directory)[1]
    pytorch = load(stand_in.repositories["me/pt"]["main"]["model.safetensors"])
    with np.load(tmp_path / "loaded.npz") as keras:
        assert set(keras) == set(pytorch) == set(weights)
        for name, array in weights.items():
            np.testing.assert_array_equal(pytorch[name], array)
            np.testing.assert_array_equal(keras[name], array)
