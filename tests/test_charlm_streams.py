"""Streams: which ids each reads, in which order, and how much of a text is in memory meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedlstm.charlm import streams as module
from fusedlstm.charlm.streams import Streams, counts, fit

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [1, 30, 10_000])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("N", "B", "T"), [(2, 1, 1), (23, 4, 2), (23, 3, 3), (100, 7, 5), (64, 1, 70), (8, 5, 1)]
)
def test_streams_are_contiguous_stretches_side_by_side(
    N: int, B: int, T: int, dtype: type, window: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", window)
    first = np.iinfo(dtype).max - N + 1  # the largest ids that there are
    streams = Streams(np.arange(first, first + N).astype(dtype), B, device)
    assert streams.n == (N - 1) // B
    chunks = list(streams.chunks(T))
    x, y = torch.cat([x for x, _ in chunks]), torch.cat([y for _, y in chunks])
    assert x.dtype == y.dtype == torch.int64
    assert x.device.type == y.device.type == device
    assert x.shape == y.shape == (streams.n, B)
    assert sum(len(x) for x, _ in streams.chunks(T, steps=T + 1)) == min(2 * T, streams.n)
    for b in range(B):
        start = first + b * streams.n
        assert x[:, b].tolist() == list(range(start, start + streams.n))
        assert y[:, b].tolist() == list(range(start + 1, start + 1 + streams.n))
    assert [len(x) for x, _ in chunks[:-1]] == [T] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1][0]) <= T
    assert all(x.is_contiguous() and y.is_contiguous() for x, y in chunks)


def test_any_chunk_can_be_read_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).integers(0, 300, 1000).astype(np.uint16)
    whole = Streams(ids, 4)
    x, y = whole.chunk(0, whole.n)
    monkeypatch.setattr(module, "WINDOW", 100)  # 25 steps
    streams = Streams(ids, 4)
    for start, T in [(0, 10), (10, 16), (200, 10), (5, 60), (5, 1), (239, 10), (248, 10), (0, 249), (64, 1)]:
        got_x, got_y = streams.chunk(start, T)
        assert torch.equal(got_x, x[start : start + T])
        assert torch.equal(got_y, y[start : start + T])


def test_processes_read_their_own_streams() -> None:
    ids = np.arange(200, dtype=np.uint8)
    x, y = Streams(ids, 6).chunk(3, 10)
    for rows in (slice(0, 3), slice(3, 6), slice(1, 6, 2), slice(5, None)):
        own_x, own_y = Streams(ids, 6, rows=rows).chunk(3, 10)
        assert torch.equal(own_x, x[:, rows])
        assert torch.equal(own_y, y[:, rows])


def test_streams_that_are_cut_already_stay_as_they_are() -> None:
    cut = np.array([[1, 2, 3], [7, 8, 9], [4, 5, 6]], dtype=np.uint8)
    x, y = Streams(cut, 3).chunk(0, 5)
    assert x.T.tolist() == [[1, 2], [7, 8], [4, 5]]
    assert y.T.tolist() == [[2, 3], [8, 9], [5, 6]]
    x, y = Streams(cut, 1).chunk(0, 9)  # as one text
    assert x[:, 0].tolist() == [1, 2, 3, 7, 8, 9, 4, 5]
    assert y[:, 0].tolist() == [2, 3, 7, 8, 9, 4, 5, 6]


def test_more_streams_than_a_text_can_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="B must be at most 3, which the text can fill, got 4"):
        Streams(np.zeros(4, np.uint8), 4)


def test_a_file_is_read_not_lent(tmp_path: Path) -> None:
    np.arange(100, dtype=np.uint8).tofile(tmp_path / "ids")
    streams = Streams(np.memmap(tmp_path / "ids", np.uint8, "r"), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of memory that it may not write
        x, _ = streams.chunk(0, 5)
    assert x[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert streams.window.untyped_storage().nbytes() == 100


@pytest.mark.parametrize(
    ("n", "B", "T"), [(2, 32, 64), (65, 32, 64), (64, 32, 64), (1000, 32, 64), (3000, 32, 64)]
)
def test_fit_shrinks_just_enough(n: int, B: int, T: int) -> None:
    fitted_B, fitted_T = fit(np.zeros(n, np.uint8), B, T)
    assert 1 <= fitted_B <= B
    assert 1 <= fitted_T <= T
    assert fitted_B * fitted_T <= n - 1
    assert fitted_T == T or n - 1 < T
    assert fitted_B == B or (fitted_B + 1) * fitted_T > n - 1


def test_fit_of_nothing_and_of_streams_cut_already() -> None:
    assert fit(np.zeros(0, np.uint8), 4, 5) == fit(np.zeros(1, np.uint8), 4, 5) == (0, 0)
    assert fit(np.zeros((3, 11), np.uint8), 4, 5) == (3, 5)
    assert fit(np.zeros((3, 4), np.uint8), 4, 5) == (3, 3)


def test_ids_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    ids = np.random.default_rng(0).integers(0, 50, 100).astype(np.uint8)
    expected = np.bincount(ids, minlength=60)
    assert counts(ids, 60).tolist() == expected.tolist()
    assert counts(ids.reshape(4, 25), 60).tolist() == expected.tolist()
    assert counts(ids[:0], 3).tolist() == [0, 0, 0]


MB = 10**6
SIZE = 120 * MB
READER = """
import json, sys
from fusedlstm.charlm import corpus
from fusedlstm.charlm.settings import Settings
from fusedlstm.charlm.streams import Streams

def memory():
    lines = [line.split() for line in open("/proc/self/status")]
    return [int(line[1]) * 1024 for name in ("VmHWM:", "RssAnon:") for line in lines if line[0] == name]

def read(file):
    settings = Settings(files=(file,), vocab=sys.argv[1], val_fraction=0.1)
    text = corpus.load(settings)
    split = text.split(settings)
    counts = split.counts(len(text.vocab))
    n = [sum(x.numel() for x, _ in Streams(part, 64).chunks(4096)) for part in split[:2]]
    return len(text.ids), text.vocab.symbols, int(counts.sum()), sum(n), text.ids[-5:].tolist()

read(sys.argv[2])
before = memory()
found = read(sys.argv[3])
print(json.dumps([*found, *(now - then for now, then in zip(memory(), before))]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell of its memory")
@pytest.mark.parametrize(("kind", "end"), [("bytes", b"\x01\x02\x03zz"), ("chars", "aé€😀z".encode())])
def test_memory_does_not_grow_with_the_text(
    kind: str, end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "short").write_bytes(1000 * end)
    with open(tmp_path / "long", "wb") as file:
        file.seek(SIZE - len(end))  # all before it is zeros that take no room on the disk
        file.write(end)
    command = [sys.executable, "-c", READER, kind, str(tmp_path / "short"), str(tmp_path / "long")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    for made in (tmp_path / "cache").rglob("ids.bin"):
        assert made.stat().st_size == SIZE - (len(end) - 5)
        made.unlink()  # pytest keeps the folders of its last runs
    assert done.returncode == 0, done.stderr
    n, symbols, counted, read, last, peak, anonymous = json.loads(done.stdout)
    assert n == SIZE - (len(end) - 5)
    assert symbols == ("\x00\x01\x02\x03z" if kind == "bytes" else "\x00azé€😀")
    assert last == ([1, 2, 3, 4, 4] if kind == "bytes" else [1, 3, 4, 5, 2])
    assert counted == n - int(n * 0.1)
    assert n - 2 * 64 * 2 <= read < n
    assert peak < 75 * MB
    assert anonymous < 65 * MB
