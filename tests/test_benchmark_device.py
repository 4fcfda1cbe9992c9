"""What the benchmark says of the device: input products, floors, cold caches, cuDNN's path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_layer, device, results
from benchmarks.shapes import FORWARD, INFER, ROWS, Row
from fusedlstm.timing import Runner

ROW = Row("x", H=3, L=2, B=5, T=7, I=11, mode=INFER, bidirectional=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device, "COPIED_BYTES", 1 << 20)
    device._large.cache_clear()
    yield
    device._large.cache_clear()


def test_input_products_are_those_of_the_mode() -> None:
    forward = 2 * 35 * 2 * 12 * (11 + 6)
    one = 2 * 35 * 2 * 12
    train = replace(ROW, mode="forward+backward")
    counted = {
        ROW: forward,
        replace(ROW, mode=FORWARD): forward,
        train: 2 * forward + one * 6,  # dx of the second layer
        replace(train, needs_dx=True): 2 * forward + one * (6 + 11),
    }
    for row, flops in counted.items():
        products = device.InputProducts(row, "cpu")
        assert products.flops == flops
        for _, _, out in products.products:
            out.fill_(torch.nan)
        products()
        assert all(out.isfinite().all() for _, _, out in products.products)
        assert products.flops < row.flops


def test_bytes_are_those_of_the_tensors() -> None:
    row = replace(ROW, bidirectional=False)
    x, y = 4 * 35 * 11, 4 * 35 * 3
    weights = 4 * (12 * (11 + 3) + 12 * (3 + 3) + 2 * 24)
    assert row.bytes == x + y + weights
    saved = 2 * 35 * 3 * 4 * 6  # gates, c and h of two layers
    assert replace(row, mode=FORWARD).bytes == x + weights + saved
    train = replace(row, mode="forward+backward")
    assert train.bytes == x + 2 * weights + 2 * saved + y
    assert replace(train, needs_dx=True).bytes == train.bytes + x
    parameters = list(torch.nn.LSTM(11, 3, 2).parameters())
    assert sum(w.nbytes for w in parameters) == weights
    assert replace(row, dtype="bfloat16").bytes * 2 == row.bytes


def test_the_floor_is_the_larger_time() -> None:
    by_flops = device.floor(ROW, ROW.flops * 10.0, ROW.bytes * 100.0)
    assert by_flops["bound"] == "flops" and by_flops["ms"] == by_flops["flops_ms"] == pytest.approx(100)
    by_bytes = device.floor(ROW, ROW.flops * 100.0, ROW.bytes * 10.0)
    assert by_bytes["bound"] == "bytes" and by_bytes["ms"] == by_bytes["bytes_ms"] == pytest.approx(100)
    assert by_bytes["bytes"] == ROW.bytes


def test_ceilings_are_measured(small: None) -> None:
    source, target = device._large("cpu")
    target.zero_()
    assert device.bytes_per_s("cpu") > 0 and torch.equal(source, target) and source.all()
    assert device.flops_per_s("float32", "cpu", 0.01) > 1e6


def test_each_cold_run_finds_the_caches_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(device, "flush", lambda where: done.append(f"flush {where}"))
    runners = {name: Runner(lambda name=name: done.append(name), nullcontext) for name in ("a", "b")}
    found = device.cold_seconds(runners, 2, "cpu")
    assert done == ["flush cpu", "a", "flush cpu", "b"] * 2
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}


def test_a_flush_writes_all_of_it(small: None) -> None:
    device.flush("cpu")
    assert not device._large("cpu")[1].any()


def test_products_may_use_tf32_where_cudnn_may(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        with device.products_as_cudnn():
            assert torch.backends.cuda.matmul.allow_tf32 == allowed
        assert torch.backends.cuda.matmul.allow_tf32 == before


@pytest.mark.parametrize(
    ("name", "changes", "path"),
    [
        ("flashrnn-fp16", {}, "persistent"),
        ("flashrnn", {}, "standard"),  # bfloat16
        ("flashrnn-fp16", {"B": 136}, "standard"),
        ("flashrnn-fp16", {"B": 12}, "standard"),
        ("flashrnn-fp16", {"H": 1152}, "standard"),
        ("flashrnn-fp16", {"H": 700}, "standard"),
        ("flashrnn-fp16", {"I": 65}, "standard"),
        ("flashrnn-fp16", {"L": 2}, "standard"),
        ("flashrnn-fp16", {"bidirectional": True}, "standard"),
        ("2x512-fp16", {}, "standard"),
        ("2x128", {}, "persistent"),
        ("2x128", {"H": 160}, "persistent forward, standard backward"),
        ("2x128", {"H": 160, "mode": INFER}, "persistent"),
        ("2x128", {"H": 193, "mode": INFER}, "standard"),
        ("2x128", {"dtype": "float64"}, "standard"),
    ],
)
def test_cudnns_path_is_the_one_torch_takes(name: str, changes: dict, path: str) -> None:
    assert device.cudnn_path(replace(ROWS[name], **changes), (9, 0), 132) == path


def test_cudnns_path_depends_on_the_card() -> None:
    row = ROWS["flashrnn-fp16"]
    paths = {
        card: device.cudnn_path(row, *card)
        for card in (((8, 0), 108), ((8, 0), 56), ((8, 6), 84), ((7, 5), 72))
    }
    assert list(paths.values()) == ["persistent", "standard", "standard", "standard"]
    assert device.cudnn_path(row, (7, 0), 80) == "persistent"
    assert device.cudnn_path(replace(row, B=112), (7, 0), 80) == "standard"
    assert device.cudnn_path(replace(row, T=9), (7, 0), 80) == "standard"


def test_a_gpus_row_has_its_clock_and_path(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(device, "nvidia_smi", lambda asked: ["1755"])
    assert bench_layer._gpu(ROWS["flashrnn-fp16"]) == {"clock_mhz": 1755, "cudnn": "persistent"}


def test_the_clock_is_a_number_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, clock in ((["1980"], 1980), (["[N/A]"], None), ([], None)):
        monkeypatch.setattr(device, "nvidia_smi", lambda asked, said=said: said)
        assert device.clock_mhz() == clock
    monkeypatch.setenv("PATH", "")
    assert results.nvidia_smi("clocks.sm") == []
