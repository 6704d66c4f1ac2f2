"""Two thousand random damages of small checkpoints: each loads equal weights or fails with a message."""

import random
import signal
import zipfile

import h5py
import numpy as np
import pytest
import torch
from models import random_weights, read_checkpoint, save_checkpoint, tiny_config
from safetensors import safe_open

from algpt2.checkpoints.checkpoint import write_checkpoint_weights
from algpt2.errors import InputError

CONFIG = tiny_config(vocab_size=40, n_positions=16, n_embd=8, n_head=2, embedding_size=4, layer_schedule=[0, 1, 0])
DAMAGES = 400
FILES = {
    "safetensors": "model.safetensors",
    "pytorch": "pytorch_model.bin",
    "pytorch before 1.6": "pytorch_model.bin",
    "keras": "model.weights.h5",
    "config": "config.json",
}


def write(directory, kind, weights):
    """A checkpoint; returns the path of the file to damage, and where it keeps values that have no checksum."""
    path = directory / FILES[kind]
    save_checkpoint(directory, CONFIG, weights)
    values = []
    if kind in ("safetensors", "config"):
        with safe_open(directory / "model.safetensors", "np"):
            header = int.from_bytes((directory / "model.safetensors").read_bytes()[:8], "little")
        if kind == "safetensors":
            values = [(8 + header, path.stat().st_size)]
        return path, values
    (directory / "model.safetensors").unlink()
    if kind == "keras":
        write_checkpoint_weights(directory, CONFIG, weights, "tensorflow")
        with h5py.File(path) as file:
            file.visititems(lambda name, item: values.append(extent(item)) if isinstance(item, h5py.Dataset) else None)
    else:
        state = {name: torch.from_numpy(array) for name, array in weights.items()}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pytorch")
        if kind == "pytorch before 1.6":
            # Everything after the pickles: sizes, which are checked, and values.
            starts = [path.read_bytes().index(array.tobytes()) for array in weights.values()]
            values = [(min(starts), path.stat().st_size)]
    return path, values


def extent(dataset):
    start = dataset.id.get_offset()
    return start, start + dataset.id.get_storage_size()


def damage(content, draw):
    """Content with a bit flipped, bytes replaced, put in or cut out, or its end cut off or gone on; and where."""
    content, place = bytearray(content), draw.randrange(len(content))
    kind = draw.choice(("bit", "bit", "byte", "bytes", "insert", "append", "cut", "end"))
    if kind == "bit":
        content[place] ^= 1 << draw.randrange(8)
        return content, {place}
    if kind == "byte":
        content[place] = draw.randrange(256)
        return content, {place}
    if kind == "bytes":
        length = min(draw.randrange(1, 9), len(content) - place)
        content[place : place + length] = draw.randbytes(length)
        return content, set(range(place, place + length))
    if kind in ("insert", "append"):
        place = place if kind == "insert" else len(content)
        content[place:place] = draw.randbytes(draw.choice((1, 8, 64, 4096)))
    elif kind == "cut":
        del content[place : place + draw.randrange(1, 9)]
    else:
        del content[place:]
    return content, None


@pytest.fixture
def time_limit():
    """Fails what hangs."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.alarm(10)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_fail_or_load_the_same(kind, time_limit, tmp_path):
    weights = random_weights(CONFIG, "float32")
    path, values = write(tmp_path / "checkpoint", kind, weights)
    content = path.read_bytes()
    assert read_checkpoint(path.parent)[1].keys() == weights.keys()
    loaded = 0
    for seed in range(DAMAGES):
        damaged, places = damage(content, random.Random(seed))
        path.write_bytes(damaged)
        time_limit()
        try:
            _, found = read_checkpoint(path.parent)
        except InputError as error:
            # A valid but different configuration does not fit the weights; the message then names their file.
            named = (path.name, "model.safetensors") if kind == "config" else (path.name,)
            assert "\n" not in str(error) and any(name in str(error) for name in named), str(error)
            continue
        loaded += 1
        wrong = [name for name, array in weights.items() if not np.array_equal(found[name], array, equal_nan=False)]
        # Other numbers may load only from places without a checksum, where nothing could tell.
        assert not wrong or (
            places is not None and all(any(start <= p < end for start, end in values) for p in places)
        ), f"seed {seed}: {wrong} load wrong numbers"
    # Otherwise the damages would all be ones that any reader finds.
    assert 0 < loaded < DAMAGES


def test_the_zip_file_has_the_checksums(tmp_path):
    path, _ = write(tmp_path / "checkpoint", "pytorch", random_weights(CONFIG, "float32"))
    with zipfile.ZipFile(path) as archive:
        assert all(entry.CRC for entry in archive.infolist() if "/data/" in entry.filename)
