"""Reading and writing single files of weights, against the libraries that the formats belong to."""

import os
import pickle
import struct
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from models import random_weights, tiny_config

from algpt2.checkpoints.formats.hdf5 import read_hdf5, write_hdf5
from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor, RowwiseTensor, is_finite, join, lazy, pieces
from algpt2.checkpoints.formats.pytorch import read_pytorch
from algpt2.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from algpt2.errors import InputError


def unchanged(name, piece):
    return piece


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(found[name]), array)


@pytest.fixture(params=DTYPES)
def weights(request):
    return random_weights(tiny_config(), request.param)


class TestSafetensors:
    def test_reads_what_the_library_writes(self, weights, tmp_path):
        safetensors.numpy.save_file({name: np.ascontiguousarray(w) for name, w in weights.items()}, tmp_path / "file")
        assert_same(read_safetensors(tmp_path / "file"), weights)

    def test_the_library_reads_what_is_written(self, weights, tmp_path):
        dtype = next(iter(weights.values())).dtype.name
        # Transposed views are written as if they were copies.
        write_safetensors(tmp_path / "file", {name: lazy(w.T) for name, w in weights.items()}, dtype, unchanged)
        for name, tensor in safetensors.torch.load_file(tmp_path / "file").items():
            assert tensor.dtype == getattr(torch, dtype)
            np.testing.assert_array_equal(tensor.double().numpy(), weights[name].T.astype("float64"))

    def test_reading_loads_nothing(self, tmp_path):
        # As large as the machine's address space allows, but sparse on disk.
        size = 1 << 40
        header = b'{"a":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (size // 4, size)
        with open(tmp_path / "file", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            try:
                file.truncate(8 + len(header) + size)
            except OSError:
                pytest.skip("the file system has no sparse files of this size")
        assert read_safetensors(tmp_path / "file")["a"].nbytes == size


class TestHdf5:
    def test_a_round_trip(self, weights, tmp_path):
        dtype = next(iter(weights.values())).dtype.name
        paths = {name.replace(".", "/"): w for name, w in weights.items()}
        write_hdf5(tmp_path / "file", {name: lazy(w) for name, w in paths.items()}, dtype, unchanged)
        assert_same(read_hdf5(tmp_path / "file"), paths)

    @pytest.mark.parametrize("options", [{}, {"compression": "gzip"}, {"chunks": (2, 2), "fletcher32": True}])
    def test_reads_other_layouts(self, options, tmp_path):
        array = np.random.default_rng(0).normal(size=(5, 7))
        with h5py.File(tmp_path / "file", "w") as file:
            file.create_dataset("group/a", data=array, **options)
        assert_same(read_hdf5(tmp_path / "file"), {"group/a": array})

    @pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}, {"compression": "gzip"}])
    def test_values_that_were_never_written_are_no_zeros(self, options, tmp_path):
        # What a writer leaves that was interrupted.
        with h5py.File(tmp_path / "file", "w") as file:
            file.create_dataset("group/a", (5, 7), "float32", **options)
        with pytest.raises(InputError, match="the values of group/a were not all written"):
            read_hdf5(tmp_path / "file")
        with h5py.File(tmp_path / "file", "a") as file:
            file["group/a"][:3] = 1
            file["group/a"][3:] = 2
        assert np.asarray(read_hdf5(tmp_path / "file")["group/a"]).sum() == 49

    def test_chunks_that_were_never_written_are_no_zeros(self, tmp_path):
        with h5py.File(tmp_path / "file", "w") as file:
            file.create_dataset("a", (5, 7), "float32", chunks=(2, 2))[:4] = 1
        with pytest.raises(InputError, match="the values of a were not all written"):
            read_hdf5(tmp_path / "file")

    @pytest.mark.parametrize("options", [{}, {"chunks": (2, 2), "maxshape": (None, 7)}])
    def test_a_tensor_without_values(self, options, tmp_path):
        with h5py.File(tmp_path / "file", "w") as file:
            file.create_dataset("a", (0, 7), "float32", **options)
        assert np.asarray(read_hdf5(tmp_path / "file")["a"]).shape == (0, 7)

    def test_values_in_a_header(self, tmp_path):
        with h5py.File(tmp_path / "file", "w") as file:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_layout(h5py.h5d.COMPACT)
            space = h5py.h5s.create_simple((3,))
            h5py.h5d.create(file.id, b"a", h5py.h5t.IEEE_F64LE, space, properties).write(space, space, np.ones(3))
        assert_same(read_hdf5(tmp_path / "file"), {"a": np.ones(3)})

    def test_values_in_other_files_are_refused(self, tmp_path):
        (tmp_path / "secret").write_bytes(b"x" * 32)
        with h5py.File(tmp_path / "file", "w") as file:
            file.create_dataset("a", (4,), "float64", external=[(str(tmp_path / "secret"), 0, 32)])
        with pytest.raises(InputError, match="values of a are in another file"):
            read_hdf5(tmp_path / "file")

    def test_a_tensor_with_the_place_of_another_is_found(self, tmp_path):
        with h5py.File(tmp_path / "file", "w") as file:
            places = [file.create_dataset(name, data=np.ones(5)).id.get_offset() for name in ("a", "b")]
        content = (tmp_path / "file").read_bytes()
        first, second = (struct.pack("<Q", place) for place in places)
        assert content.count(second) == 1
        (tmp_path / "file").write_bytes(content.replace(second, first))
        with pytest.raises(InputError, match="a and b overlap"):
            read_hdf5(tmp_path / "file")

    def test_headers_that_are_written_have_checksums(self, tmp_path):
        write_hdf5(tmp_path / "file", {"a": lazy(np.ones(500))}, "float64", unchanged)
        with h5py.File(tmp_path / "file") as file:
            place = struct.pack("<Q", file["a"].id.get_offset())
        content = (tmp_path / "file").read_bytes()
        assert content.count(place) == 1
        # A place where other bytes are, which nothing else would tell.
        (tmp_path / "file").write_bytes(content.replace(place, struct.pack("<Q", 8)))
        with pytest.raises(InputError, match="not readable as HDF5"):
            read_hdf5(tmp_path / "file")

    def test_a_wrong_checksum_is_found(self, tmp_path):
        with h5py.File(tmp_path / "file", "w") as file:
            dataset = file.create_dataset("a", data=np.ones((4, 4)), chunks=(4, 4), fletcher32=True)
            offset = dataset.id.get_chunk_info(0).byte_offset
        flip(tmp_path / "file", offset + 5)
        with pytest.raises(InputError, match="a is not readable"):
            np.asarray(read_hdf5(tmp_path / "file")["a"])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
class TestPyTorch:
    def save(self, value, path, legacy):
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)

    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "uint8", "bool"])
    def test_reads_what_torch_reads(self, dtype, legacy, tmp_path):
        base = torch.arange(24).reshape(4, 6).to(getattr(torch, dtype))
        state = {"plain": base, "transposed": base.t(), "part": base[1:3, ::2], "whole": torch.nn.Linear(3, 2).weight}
        self.save(state, tmp_path / "file", legacy)
        expected = torch.load(tmp_path / "file", weights_only=True)
        found = read_pytorch(tmp_path / "file")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].shape == tuple(tensor.shape) and f"torch.{found[name].dtype}" == str(tensor.dtype)
            array = np.asarray(found[name]).astype("float64")
            np.testing.assert_array_equal(array, tensor.detach().double().numpy())

    def test_reads_the_state_of_a_module(self, legacy, tmp_path):
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        self.save(module.state_dict(), tmp_path / "file", legacy)
        assert read_pytorch(tmp_path / "file").keys() == module.state_dict().keys()

    def test_nothing_in_a_file_runs(self, legacy, tmp_path):
        class Malicious:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'ran'}",)

        self.save({"a": torch.ones(2), "b": Malicious()}, tmp_path / "file", legacy)
        with pytest.raises(InputError, match=r"not readable as tensors that torch\.save wrote \(.*posix\.system"):
            read_pytorch(tmp_path / "file")
        assert not (tmp_path / "ran").exists()
        # It would have run, had it been unpickled.
        torch.load(tmp_path / "file", weights_only=False)
        assert (tmp_path / "ran").exists()

    @pytest.mark.parametrize("value", [[torch.ones(2)], {"a": 1}, torch.nn.Linear(2, 2)], ids=["list", "int", "module"])
    def test_anything_but_tensors_is_refused(self, value, legacy, tmp_path):
        self.save(value, tmp_path / "file", legacy)
        with pytest.raises(InputError, match=r"not readable as tensors that torch\.save wrote"):
            read_pytorch(tmp_path / "file")


def test_a_plain_pickle_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match=r"not readable as tensors that torch\.save wrote"):
        read_pytorch(tmp_path / "file")


def test_the_checksums_of_a_pytorch_file_are_kept(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "file")
    with zipfile.ZipFile(tmp_path / "file") as archive:
        place = archive.getinfo("file/data/0").header_offset
    flip(tmp_path / "file", place + 200)
    with pytest.raises(InputError, match="the checksum of file/data/0 is wrong"):
        np.asarray(read_pytorch(tmp_path / "file")["a"])


@pytest.mark.parametrize("read", [read_safetensors, read_hdf5, read_pytorch])
def test_what_is_no_such_file(read, tmp_path):
    with pytest.raises(InputError, match="nothing: no such file"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no tensors here" * 100)
    for name in ("empty", "text"):
        with pytest.raises(InputError, match=f"{name}: not readable"):
            read(tmp_path / name)


class TestLazyTensor:
    def test_views_are_those_of_numpy(self):
        array = np.arange(24.0).reshape(4, 6)
        tensor = LazyTensor(array.shape, array.dtype, lambda: array)
        for found, expected in (
            (tensor.T, array.T),
            (tensor.reshape((2, 12)), array.reshape(2, 12)),
            (tensor.rows(1, 3), array[1:3]),
            (join([tensor, tensor.rows(0, 1)]), np.concatenate([array, array[:1]])),
        ):
            assert found.shape == expected.shape and found.nbytes == expected.nbytes
            np.testing.assert_array_equal(np.asarray(found), expected)

    @pytest.mark.parametrize("shape", [(1,), (3, 5), (257, 129), (700, 3000), (2, 3, 4)])
    @pytest.mark.parametrize("transposed", [False, True])
    def test_pieces_are_the_whole(self, shape, transposed):
        array = np.random.default_rng(0).normal(size=shape).astype(ml_dtypes.bfloat16)
        array = array.T if transposed else array
        parts = list(pieces(lazy(array)))
        assert all(part.flags.c_contiguous and part.nbytes <= max(1 << 22, array[:1].nbytes) for part in parts)
        np.testing.assert_array_equal(np.concatenate(parts), array)

    @pytest.mark.parametrize(
        "view", [lambda t: t, lambda t: t.T, lambda t: t.rows(5, 900), lambda t: t.reshape((5, -1))]
    )
    def test_rows_are_computed_in_pieces(self, view):
        source, matrix = np.arange(10_000.0).reshape(1000, 10), np.arange(20_000.0).reshape(10, 2000)
        counts = []

        def compute(rows):
            counts.append(len(rows))
            return rows @ matrix

        tensor = view(RowwiseTensor(lazy(source), 2000, "float32", compute))
        np.testing.assert_array_equal(
            np.concatenate(list(pieces(tensor))),
            view(LazyTensor((1000, 2000), "float32", lambda: (source @ matrix).astype("float32"))),
        )
        assert sum(counts) == 1000 and max(counts) == (1 << 22) // (4 * 2000)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_what_is_finite(self, dtype):
        array = np.array([0.0, -1.5, 3e4], DTYPES[dtype])
        assert is_finite(array)
        for value in (np.nan, np.inf, -np.inf):
            assert not is_finite(np.append(array, np.array(value, DTYPES[dtype])))
