"""Writing that is killed, that meets another writer, and that is given links, mounts and the current directory."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from kills import die_at_every_call

from algpt2 import InputError
from algpt2.files import atomic
from algpt2.files.atomic import directory_replaced, file_replaced, files_replaced_in, require_whole, writing

FILES = ("config.json", "weights", "below/tokenizer.json")


def write(directory, text):
    for name in FILES:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def contents(directory):
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def replace_directory(target):
    with directory_replaced(target) as new:
        write(new, "new")


def replace_files(target):
    with files_replaced_in(target, stale=["stale-*"]) as new:
        write(new, "new")


def replace_file(target):
    with file_replaced(target / "weights") as new:
        new.write_text("new")


WAYS = {replace_directory: True, replace_files: True, replace_file: False}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_kill_leaves_the_old_or_the_new(way, there, exchange, monkeypatch, tmp_path):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    # Nothing fails by itself here, and waiting for the disk takes most of the time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    target, states = tmp_path / "run", []

    def prepare():
        shutil.rmtree(target, ignore_errors=True)
        if there:
            write(target, "old")
            (target / "stale-1").write_text("old")
        states[:1] = [seen()]

    def seen():
        """What someone finds who does not know the directories that are being finished."""
        found = contents(target) if target.exists() else {}
        return {name: text for name, text in found.items() if ".algpt2-" not in name}

    prepare()
    way(target)
    states.append(seen())

    def check(died):
        if "config.json" in seen() and way is not replace_file:
            assert seen() in states
        if target.exists():
            require_whole(target)
        assert seen() in states or (not exchange and not target.exists())
        way(target)
        assert contents(tmp_path) == {f"run/{name}": text for name, text in states[1].items()}

    assert die_at_every_call(prepare, lambda: way(target), check) > 5


def test_only_what_is_ours_is_removed(tmp_path):
    others = (".r[1]*.backup", ".r[1]*.algpt2-tmp.mine", ".r1.algpt2-tmp.0123abcd", ".r[1]*.0123abcd", "r1")
    for name in others:
        write(tmp_path / name, "precious")
    ours = (".r[1]*.algpt2-tmp.0123abcd", "r[1]*/.r[1]*.algpt2-tmp.4567cdef")
    for name in ("r[1]*", *ours):
        write(tmp_path / name, "old")
    replace_files(tmp_path / "r[1]*")
    assert not any((tmp_path / name).exists() for name in ours)
    assert all(contents(tmp_path / name) == dict.fromkeys(FILES, "precious") for name in others)


@pytest.mark.parametrize("way", WAYS)
def test_one_process_writes_at_a_time(way, tmp_path):
    target = tmp_path / "run"
    write(target, "old")
    locked = target if WAYS[way] else target / "weights"
    read, ready = os.pipe()
    writer = os.fork()
    if not writer:
        with writing(locked):
            os.write(ready, b"x")
            signal.pause()
    try:
        os.read(read, 1)
        with pytest.raises(InputError, match="another process is writing it"):
            way(target)
        lock = {} if WAYS[way] else {".weights.algpt2-lock": ""}
        assert contents(target) == {**dict.fromkeys(FILES, "old"), **lock}
        # A reader need not wait.
        require_whole(target)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    way(target)
    assert (target / "weights").read_text() == "new" and not list(tmp_path.rglob("*.algpt2-*"))


def test_a_process_may_write_within_its_own_writing(tmp_path):
    with writing(tmp_path / "run"):
        replace_directory(tmp_path / "run")
        replace_files(tmp_path / "run")
        with writing(tmp_path / "run"):
            pass
        assert [path.name for path in tmp_path.iterdir() if "lock" in path.name]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_parents_go_again_if_nothing_comes_into_them(tmp_path):
    with pytest.raises(RuntimeError), directory_replaced(tmp_path / "deep" / "er" / "run"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("way", [replace_directory, replace_files])
def test_a_link_stays_one(way, tmp_path):
    (tmp_path / "big").mkdir()
    (tmp_path / "run").symlink_to("big/run")
    for _ in range(2):
        way(tmp_path / "run")
        assert (tmp_path / "run").is_symlink()
        assert contents(tmp_path / "big" / "run") == dict.fromkeys(FILES, "new")
    assert sorted(path.name for path in tmp_path.rglob("*") if "algpt2" in path.name) == []


@pytest.mark.parametrize("way", [replace_directory, replace_files])
@pytest.mark.parametrize("name", [".", "../run", "below/.."])
def test_the_current_directory(way, name, monkeypatch, tmp_path):
    write(tmp_path / "run", "old")
    (tmp_path / "run" / "stale-1").write_text("old")
    monkeypatch.chdir(tmp_path / "run")
    before = os.stat(".").st_ino
    way(Path(name))
    assert os.stat(".").st_ino == before and contents(Path(".")) == dict.fromkeys(FILES, "new")


def test_an_empty_directory_that_something_is_mounted_on_is_filled(tmp_path, monkeypatch):
    (tmp_path / "volume").mkdir()
    before = (tmp_path / "volume").stat().st_ino
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "volume"))
    for _ in range(2):
        replace_directory(tmp_path / "volume")
        assert contents(tmp_path / "volume") == dict.fromkeys(FILES, "new")
        assert (tmp_path / "volume").stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]


@pytest.mark.parametrize(
    ("files", "removed"),
    [
        ((), ["../secret"]),
        ((), ["/etc/hostname"]),
        ((), ["link/secret"]),
        (("link/secret",), []),
        ((), {"a": 1}),
        ((), [1]),
        ((), "[" * 9999),
    ],
)
def test_a_directory_from_elsewhere_changes_nothing_outside_of_it(files, removed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").write_text("precious")
    (tmp_path / "secret").write_text("precious")
    incomplete = tmp_path / "run" / ".algpt2-incomplete"
    for name in files or ("a",):
        (incomplete / name).parent.mkdir(parents=True, exist_ok=True)
        (incomplete / name).write_text("new")
    (tmp_path / "run" / "link").symlink_to("../out")
    (incomplete / ".algpt2-removed").write_text(removed if isinstance(removed, str) else json.dumps(removed))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is half-written"):
        require_whole(tmp_path / "run")
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (Exception("No space left on device (os error 28)"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "unexpected pos 64"),
    ],
)
def test_a_full_disk_in_the_words_of_every_library(error, message, tmp_path):
    with pytest.raises(InputError, match=f"run: cannot be written .*{message}"), directory_replaced(tmp_path / "run"):
        raise error
    with pytest.raises(Exception, match="no word of a disk"), directory_replaced(tmp_path / "run"):
        raise Exception("no word of a disk")
    assert not list(tmp_path.iterdir())
