"""Arrays and memory maps in blocks and at unit norm; squared distances; maps give their memory back."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oodlib import arrays
from oodlib.arrays import UnitRows, as_array, read_blocks, release, sample_rows, squared_distances, to_unit_norm

Z = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float16)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(arrays, "ROWS", 8)


@pytest.fixture(params=["array", "file"])
def stored(request, tmp_path):
    """A function that gives an array in memory, or read-only from a file."""

    def store(array):
        np.save(tmp_path / "z.npy", array)
        return array if request.param == "array" else np.load(tmp_path / "z.npy", mmap_mode="r")

    return store


def joined(z, rows=None):
    parts = list(read_blocks(z, rows))
    return [part for part, _ in parts], np.concatenate([block for _, block in parts])


@pytest.mark.parametrize(("dtype", "working"), [("f2", "f4"), ("f4", "f4"), ("f8", "f8"), ("i8", "f4"), (">f4", "f4")])
def test_blocks_hold_all_rows_or_the_chosen_ones_in_the_working_dtype(small, stored, dtype, working):
    z, rows = stored((10 * Z).astype(dtype)), np.random.default_rng(1).integers(0, 50, 19)
    for chosen in (None, rows):
        parts, read = joined(z, chosen)
        assert parts == [slice(start, min(start + 8, len(read))) for start in range(0, len(read), 8)]
        assert read.dtype == arrays.working_dtype(z) == np.dtype(working)
        assert np.array_equal(read, z if chosen is None else z[rows])


def test_a_small_set_is_one_block_and_is_not_copied():
    z = Z.astype(np.float32)
    ((part, block),) = read_blocks(z)
    assert part == slice(0, 50)
    assert np.shares_memory(block, z)
    assert len(list(read_blocks(np.zeros((arrays.ROWS + 1, 1))))) == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [1e-30, 1e-20, 1, 1e20, 1e30])
def test_unit_norm_of_any_unit(unit, dtype):
    z = np.random.default_rng(0).normal(size=(5, 7)) * unit
    z[2], z[3] = 0, [3 * unit, 4 * unit, 0, 0, 0, 0, 0]
    given = z.astype(dtype)
    with np.errstate(all="ignore"):
        found = to_unit_norm(given)
    assert found.dtype == dtype
    assert found[2].tolist() == [0] * 7
    np.testing.assert_allclose(found[3], [0.6, 0.8, 0, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found[[0, 1, 3, 4]], axis=1), 1, rtol=1e-6)
    assert np.array_equal(given, z.astype(dtype))  # not in place


def test_squared_distances_are_never_negative():
    centers = np.random.default_rng(0).normal(size=(50, 100)).astype(np.float32)
    found = squared_distances(centers, centers.astype(np.float64))
    assert (found >= 0).all()
    assert np.diag(found).max() < 1e-12
    by_tensor = squared_distances(torch.from_numpy(centers), torch.from_numpy(centers).double())
    np.testing.assert_allclose(by_tensor.numpy(), found, rtol=1e-12, atol=1e-12)


def test_a_sample_is_seeded_ascending_and_all_rows_where_they_are_few():
    assert sample_rows(5, 7).tolist() == [0, 1, 2, 3, 4]
    some = sample_rows(100, 30, seed=1)
    assert (np.diff(some) > 0).all()
    assert np.array_equal(some, sample_rows(100, 30, seed=1))
    assert not np.array_equal(some, sample_rows(100, 30, seed=2))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_unit_rows_are_made_in_double_precision_as_they_are_read(small, stored, dtype):
    z = stored(Z.astype(dtype))
    unit = UnitRows(z)
    assert (len(unit), unit.shape, unit.dtype) == (50, (50, 6), np.float64)
    expected = to_unit_norm(Z.astype(dtype).astype(np.float64))
    rows = np.array([7, 3, 3, 49])
    for read, what in ((unit[:], expected), (unit[5:9], expected[5:9]), (unit[rows], expected[rows])):
        assert read.dtype == np.float64
        assert np.array_equal(read, what)
    assert np.array_equal(joined(unit)[1], expected)
    assert np.array_equal(joined(unit, rows)[1], expected[rows])
    np.testing.assert_allclose(np.linalg.norm(unit[:], axis=1), 1, rtol=1e-15)


def resident(path):
    """Return how many bytes of a mapped file are in this process's memory."""
    maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(1024 * int(re.search(r"Rss:\s+(\d+) kB", after)[1]) for after in maps)


@pytest.mark.skipif(sys.platform != "linux", reason="memory by /proc")
def test_a_file_that_was_read_takes_no_memory(tmp_path):
    path = tmp_path / "z.npy"
    np.save(path, np.ones((16 * arrays.ROWS, 64), dtype=np.float32))
    z = np.load(path, mmap_mode="r")
    assert float(z.sum()) == z.size
    assert resident(path) > 0.9 * z.nbytes
    release(z)
    for source in (z, np.asarray(z), z[arrays.ROWS :], UnitRows(z)):  # detectors see views of what they are given
        largest = 0
        for part, block in read_blocks(source):
            assert block.shape[1] == 64
            if part.start % (5 * arrays.ROWS) == 0:  # to ask is slow
                largest = max(largest, resident(path))
        assert largest < z.nbytes / 4  # a block, and a little that the kernel reads ahead
        assert resident(path) == 0


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_what_was_written_to_a_map_or_is_no_map_is_left_alone(mode, tmp_path):
    np.save(tmp_path / "z.npy", Z)
    z = np.load(tmp_path / "z.npy", mmap_mode=mode)
    z[:] = 1
    view, array = z[:], np.ones_like(Z)
    view.flags.writeable = array.flags.writeable = False
    for source in (z, view, array, array[3:], UnitRows(array), np.frombuffer(b"ab", dtype=np.uint8)):
        release(source)
        assert (np.asarray(source[:]) > 0).all()
    assert (joined(view)[1] == 1).all()
    assert (z == 1).all()


def test_tensors_become_arrays_and_all_else_stays():
    for z in (Z, [[1, 2]], None, np.float32(3)):
        assert as_array(z) is z
    tensor = torch.from_numpy(Z.astype(np.float32))
    assert np.shares_memory(as_array(tensor), tensor.numpy())
    for dtype in (torch.float16, torch.float32, torch.float64, torch.int64, torch.bool):
        found = as_array(tensor.to(dtype))
        assert (found.dtype.name, found.shape) == (str(dtype).removeprefix("torch."), Z.shape)
        assert np.array_equal(found, tensor.to(dtype).numpy())
    rounded = tensor.bfloat16()
    assert as_array(rounded).dtype == np.float32
    assert np.array_equal(as_array(rounded.requires_grad_()), rounded.detach().float().numpy())


def test_arrays_need_no_torch():
    code = """
import sys
import numpy as np
from oodlib.clustering.clusters import cluster
from oodlib.metrics import auroc
from oodlib.scoring import ClusterDetector, ViMDetector
from oodlib.separation import global_separation
z, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
auroc(ClusterDetector().fit(z, y).score_samples(z), ViMDetector().fit(z).score_samples(z))
global_separation(z, cluster(z, method="kmeans", n_clusters=2).assignments)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
