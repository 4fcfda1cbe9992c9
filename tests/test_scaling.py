"""The scaling benchmark changes one size at a time, keeps to its time, and takes the threads it says."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import memory, plots, results, rivals, scaling
from benchmarks.contenders import CONTENDERS
from benchmarks.shapes import Row

TINY = Row("base", H=8, L=1, B=2, T=3, I=8)
TWO = {name: CONTENDERS[name] for name in ("ours", "torch")}


def test_only_one_size_differs_from_the_base() -> None:
    base = scaling.BASES["cpu"]
    for axis, values in scaling.VALUES.items():
        assert values == sorted(values) and all(getattr(b, axis) in values for b in scaling.BASES.values())
        row = scaling.at(base, axis, 7)
        changed = {size for size in ("H", "L", "B", "T", "I") if getattr(row, size) != getattr(base, size)}
        assert changed == ({"H", "I"} if axis == "H" else {axis}) and getattr(row, axis) == 7
    assert scaling.at(base, "threads", 7) == base
    assert scaling.axes("cpu")["threads"] == list(range(1, torch.get_num_threads() + 1))
    assert "threads" not in scaling.axes("cuda")


@pytest.mark.skipif(not memory.RESET_PEAK.exists(), reason="only Linux tells the peak")
def test_time_and_memory_against_t(tmp_path: Path) -> None:
    found = scaling.measure("T", [1, 40], TINY, time.monotonic() + 60, TWO)
    assert found["values"] == [1, 40] and found["base"]["T"] == 3
    assert found["ms"].keys() == found["peak_bytes"].keys() == TWO.keys()
    assert all(len(ms) == 2 and min(ms) > 0 for ms in found["ms"].values())
    assert all(len(peaks) == 2 for peaks in found["peak_bytes"].values())
    results.add(tmp_path / "a.json", results.machine(), "scaling", "T", found)
    figure = plots.scaling(json.loads((tmp_path / "a.json").read_text()))
    assert figure is not None and len(figure.axes) == 2


@pytest.mark.skipif(not memory.RESET_PEAK.exists(), reason="only Linux tells the peak")
def test_who_refuses_a_value_and_what_memory_had_no_time_for_is_none(tmp_path: Path) -> None:
    mine = TWO | {"no": replace(TWO["torch"], refuses=partial(rivals.only_cpu, "cuda"))}
    found = scaling.measure("T", [1, 9], TINY, time.monotonic() + 60, mine)
    assert found["ms"]["no"] == found["peak_bytes"]["no"] == [None, None]
    assert None not in found["ms"]["ours"] + found["peak_bytes"]["torch"]
    assert scaling._peak(TINY, TWO["ours"], time.monotonic() - 1) is None
    found["peak_bytes"]["ours"][1] = None
    results.add(tmp_path / "a.json", results.machine(), "scaling", "T", found)
    figure = plots.scaling(results.load(tmp_path / "a.json"))
    assert figure is not None
    assert [[len(line.get_xdata()) for line in ax.get_lines()] for ax in figure.axes] == [[2, 2], [1, 2]]


def test_after_the_deadline_no_value_is_begun() -> None:
    found = scaling.measure("L", [1, 2], TINY, time.monotonic() - 1, TWO)
    assert found["values"] == [] and found["ms"] == {"ours": [], "torch": []} and "peak_bytes" not in found


def test_threads_are_those_of_the_axis_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []

    def timed(runners: dict, seconds: float, device: str) -> dict[str, list[float]]:
        seen.append(torch.get_num_threads())
        return {name: [1.0] for name in runners}

    monkeypatch.setattr(scaling, "interleave", timed)
    found = scaling.measure("threads", [2, 1], TINY, time.monotonic() + 1, TWO)
    assert seen == [2, 1] and torch.get_num_threads() == before
    assert found["ms"] == {"ours": [1000.0, 1000.0], "torch": [1000.0, 1000.0]}


def test_a_wrong_result_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.parity, "check", lambda row, contenders: {"ok": False})
    with pytest.raises(SystemExit, match="the result is wrong"):
        scaling.main(out=tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_the_benchmarks_need_neither_tyro_nor_pooch() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(tyro=None, pooch=None)\n"
        "from benchmarks import bench_sample, bench_train, compare, plots, report, scaling\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=300)
