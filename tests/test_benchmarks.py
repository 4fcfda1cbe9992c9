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
from benchmarks.contenders import CONTENDERS, ON, Pass
from benchmarks.shapes import GRID, INFER, ROWS, SETS, TARGETS, WIDE, Row

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
    flops_per_ms = row["flops"] / row["ms"]["ours"]["p50"]
    assert row["share"] == pytest.approx(flops_per_ms / row["ceiling_gflops"] / 1e6)
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
    assert "cpu" not in ROWS["2x512-fp16"].devices and all("cuda" in row.devices for row in ROWS.values())


def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(SystemExit, match="torch finds no GPU"):
        bench_layer.main(device="cuda")
    assert set(ON["cuda"]) >= {"ours", "torch", "torch_plain"}
    assert all(contender.device == device for device in ON for contender in ON[device].values())


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


def test_numpy_is_timed_only_where_it_is_quick() -> None:
    assert bench_layer.numpy_ms(TINY)["numpy"]["runs"] == 1
    assert bench_layer.numpy_ms(TARGETS[0]) == {}


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
