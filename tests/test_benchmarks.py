"""The benchmarks run, time nothing that is wrong, and their reports read what they write."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedlstm

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_layer, bench_train, compare, memory, report, results
from benchmarks.contenders import CONTENDERS, ON, Contender, Pass, _own
from benchmarks.shapes import FORWARD, GRID, INFER, ROWS, SETS, TARGETS, TRAIN, WIDE, Row
from fusedlstm import _C

TINY = Row("2x128", H=8, L=2, B=2, T=3, I=4, needs_dx=True)


class Wrong(fusedlstm.LSTM):
    """An LSTM that is off by a thousandth."""

    def forward(self, *args: Any) -> Any:
        y, states = super().forward(*args)
        assert isinstance(y, torch.Tensor)
        return y * 1.001, states


def test_a_row_is_measured_reported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, page, readme = tmp_path / "a.json", tmp_path / "RESULTS.md", tmp_path / "README.md"
    bench_layer.run([TINY], out, results.machine(), quick=True)
    record = json.loads(out.read_text())
    assert record["machine"].keys() >= {"device", "threads", "torch", "engine", "commit", "dirty", "binary"}
    row = record["layer"][TINY.name]
    assert row["parity"]["ok"] and row["date"] and row["auto"] in fusedlstm.backends()
    assert set(row["ms"]) == set(CONTENDERS)
    for name in CONTENDERS:
        times = row["ms"][name]
        assert 0 < times["p20"] <= times["p50"] <= times["p80"] and times["runs"] >= 5
    torchs = min(row["ms"][name]["p50"] for name in ("torch", "torch_plain"))
    assert row["ratio"] == pytest.approx(torchs / row["ms"]["ours"]["p50"])
    floor = row["floor"]
    assert floor["flops_ms"] == pytest.approx(row["flops"] / row["ceiling_gflops"] / 1e6)
    assert floor["bytes_ms"] == pytest.approx(floor["bytes"] / row["bandwidth_gb_per_s"] / 1e6)
    assert floor["ms"] == max(floor["flops_ms"], floor["bytes_ms"]) == floor[f"{floor['bound']}_ms"]
    assert row["share"] == pytest.approx(floor["ms"] / row["ms"]["ours"]["p50"])
    assert row["kernel"] == f"{_C.engine()} engine" and row["skipped"] == {}
    assert row["input_product_ms"] > 0 and not {"clock_mhz", "cudnn", "cold_ms"} & row.keys()
    assert 0 < row["saved_bytes_per_layer"]["ours"] <= row["saved_bytes_per_layer"]["allowed"]

    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.main(out, page, readme)
    assert f"| {TINY.name} | 8 | 2 | 2 | 3 | 4 | float32 | forward+backward |" in page.read_text()
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"{row['ratio']:.2f}" in text

    capsys.readouterr()
    compare.main(out, out)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(row["ms"]) and all(" 1.00" in line for line in lines)


def test_a_wrong_row_has_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contenders = CONTENDERS | {"ours": replace(CONTENDERS["ours"], lstm=Wrong)}
    out = tmp_path / "a.json"
    bench_layer.run([TINY], out, results.machine(), quick=True, contenders=contenders)
    row = json.loads(out.read_text())["layer"][TINY.name]
    assert not row["parity"]["ok"] and not {"ms", "ratio", "share"} & row.keys()
    assert "PARITY FAILED, no time" in capsys.readouterr().out
    assert "wrong result: no time" in report.results_page(results.load(out), "a.json")


def test_a_record_is_of_one_build(tmp_path: Path) -> None:
    out, machine = tmp_path / "a.json", results.machine()
    results.add(out, machine, "layer", "x", {})
    results.check(out, machine)
    results.add(out, machine, "busy", "y", {})
    assert set(results.load(out)) == {"machine", "layer", "busy"}
    with pytest.raises(SystemExit, match="another binary"):
        results.check(out, machine | {"binary": "other"})


def test_training_steps_agree(tmp_path: Path) -> None:
    found = bench_train.measure(bench_train.Net(H=16, L=2, B=4, T=8, V=65), steps=5)
    first = {name: losses[0] for name, losses in found["losses"].items()}
    assert first["ours float32"] == pytest.approx(first["torch float32"], rel=1e-5)
    assert found["agreement"]["float32"]["ok"]
    results.add(tmp_path / "a.json", results.machine(), "train", "2x16", found)
    page = report.results_page(results.load(tmp_path / "a.json"), "a.json")
    assert "| 2x16, V=65, B=4, T=8 | float32 |" in page


def test_the_table_of_shapes() -> None:
    assert len(ROWS) >= 40 and len(ROWS) == len(GRID) + len(TARGETS) + len(WIDE), "a name is there twice"
    assert all(set(names) <= set(ROWS) for names in SETS.values())
    for name, where in (("2x512-fp16", ("cuda",)), ("float64", ("cpu",)), ("2x512", ("cpu", "cuda"))):
        assert ROWS[name].devices == where
    assert set(SETS["rivals"]) <= set(SETS["gpu"])


@pytest.mark.parametrize(
    "sizes",
    [
        {"L": 2, "H": 512, "B": 100, "T": 100},
        {"L": 3, "H": 512, "I": 65},  # Shakespeare
        {"L": 3, "H": 700},  # Linux
        {"H": 768, "B": 16, "T": 1024, "dtype": "float16"},
        {"H": 768, "B": 16, "T": 1024, "dtype": "bfloat16"},
        {"B": 2048, "T": 16, "H": 128},
        {"L": 4, "H": 640, "bidirectional": True},
        {"name": "ocr", "bidirectional": True},
        {"name": "stream", "B": 1, "mode": INFER},
        {"T": 10_000},
        {"H": 101, "B": 7, "T": 113},
        *({"mode": mode} for mode in (INFER, FORWARD, TRAIN)),
    ],
)
def test_the_shapes_that_people_have_are_measured(sizes: dict[str, Any]) -> None:
    assert any(all(getattr(row, size) == value for size, value in sizes.items()) for row in ROWS.values())


def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        bench_layer.main(device="cuda")
    assert set(ON["cuda"]) >= {"ours", "torch", "torch_plain"}
    assert all(contender.device == device for device in ON for contender in ON[device].values())


def test_further_backends_of_ours_stand_beside_the_first(tmp_path: Path) -> None:
    own = _own("cpu", "cpu", "eager", "triton")
    assert list(own) == ["ours", "ours:eager", "ours:triton"]
    found = bench_layer.measure(TINY, CONTENDERS | own, quick=True)
    assert {"ours", "ours:eager"} <= found["ms"].keys() and "ours:triton" not in found["ms"]
    assert found["skipped"]["ours:triton"]
    assert found["parity"]["outputs"]["ours:eager"] <= found["parity"]["outputs"]["allowed"]


def test_on_a_cpu_everybody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(bench_layer, "measure", lambda row, who, quick: seen.update(who) or {"skipped": {}})
    monkeypatch.setattr(bench_layer, "_line", lambda found: "")
    bench_layer.main("tiny", tmp_path / "a.json")
    assert list(seen) == [*CONTENDERS, "compile", "loop", "numpy", "flashrnn", "haste"]
    seen.clear()
    bench_layer.main("tiny", tmp_path / "b.json", quick=True)
    assert list(seen) == [*CONTENDERS]


def test_on_a_gpu_ours_and_cudnn_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, list[str], set[str], float]] = []

    def run(rows: Any, out: Path, machine: Any, quick: bool, contenders: Any, deadline: float) -> None:
        calls.append(("ours", [row.name for row in rows], set(contenders), deadline))

    def run_rivals(rows: Any, out: Path, machine: Any, contenders: Any, rivals: Any, deadline: float) -> None:
        calls.append(("rivals", [row.name for row in rows], set(rivals), deadline))

    monkeypatch.setattr(results, "machine", lambda device: {"device": device})
    monkeypatch.setattr(bench_layer, "run", run)
    monkeypatch.setattr(bench_layer, "run_rivals", run_rivals)
    bench_layer.main("gpu", tmp_path / "a.json", device="cuda", minutes=10)
    (_, rows, ours, first), (_, few, rivals, second) = calls
    assert [call[0] for call in calls] == ["ours", "rivals"] and ours == set(ON["cuda"])
    assert rows == SETS["gpu"] and set(few) == set(SETS["rivals"])
    assert rivals == {"compile", "loop", "numpy", "flashrnn", "haste"}
    assert 100 < second - first < 140  # a fifth of the time is kept for them


def test_no_row_is_begun_after_the_deadline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_layer.run([TINY], tmp_path / "a.json", results.machine(), deadline=0.0)
    assert "time is up: 2x128 were not measured" in capsys.readouterr().out
    assert not (tmp_path / "a.json").exists()


def test_flops_are_those_of_the_products() -> None:
    row = Row("x", H=3, L=2, B=5, T=7, I=11, mode=INFER, bidirectional=True)
    forward = 2 * 35 * 2 * 12 * ((11 + 3) + (6 + 3))
    assert row.flops == forward
    train = replace(row, mode="forward+backward")
    assert train.flops == 3 * forward - 2 * 35 * 2 * 12 * 11
    assert replace(train, needs_dx=True).flops == 3 * forward


def test_who_would_take_too_long_is_not_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"ours": 1.0, "torch": 0.1, "torch_plain": 1.1, "numpy": 0.9, "loop": 1.1}
    contenders = {name: Contender(name, torch.nn.LSTM) for name in taken}
    monkeypatch.setattr(bench_layer, "once", lambda runner, device: next(seconds))
    for T, slow in ((100, {"torch_plain", "loop"}), (1, set())):  # T=100 is tried at 2 steps
        seconds = iter(taken.values())
        found = bench_layer._skipped(replace(TINY, T=T), contenders)
        assert found.keys() == slow
        assert all(why == "11 times torch as it comes at T=2, or 55 s a pass" for why in found.values())


@pytest.mark.skipif(not memory.RESET_PEAK.exists(), reason="only Linux tells the peak")
def test_peak_memory_counts_what_a_pass_takes() -> None:
    row = Row("x", H=64, L=1, B=64, T=100, I=64)
    peak = memory.peak_bytes(row, CONTENDERS["ours"])
    assert peak is not None
    assert Pass(row, CONTENDERS["ours"]).saved_bytes() <= peak < 20 * row.saved_bytes_allowed


def test_markers_must_be_there() -> None:
    with pytest.raises(ValueError, match="must have"):
        report.filled(f"{report.BEGIN} alone", "text")


def test_dtype_names_are_torchs() -> None:
    assert {row.torch_dtype for row in GRID} == {torch.float32, torch.float64, torch.bfloat16}
