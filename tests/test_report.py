"""The report, its plots and the comparison say what the record says, of any age and device."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import compare, plots, report, results, tables

OLD = results.RESULTS / "amd-epyc-2-cores-avx512bf16" / "96028acec04f.json"
Record = dict[str, Any]


@pytest.fixture
def old() -> Record:
    """A record from before floors, scaling and samples."""
    return results.load(OLD)


def times(p50: float, spread: float = 0.1) -> dict[str, float]:
    return {"p20": p50 * (1 - spread), "p50": p50, "p80": p50 * (1 + spread), "runs": 9}


def row(name: str, ours: float, torch: float, **more: Any) -> Record:
    sizes = {"H": 512, "L": 2, "B": 64, "T": 100, "I": 512, "bidirectional": False, "flops": 4e9}
    return {
        "name": name, **sizes, "mode": "forward+backward", "dtype": "float16", "auto": "triton",
        "kernel": "grid", "cudnn": "persistent", "clock_mhz": 1980,
        "parity": {"ok": True}, "skipped": {"haste": "is not installed"},
        "ms": {"ours": times(ours), "ours:eager": times(9 * ours), "torch": times(torch),
               "loop": times(50.0)},
        "cold_ms": {"ours": times(ours + 1), "torch": times(torch + 1)}, "ratio": torch / ours,
        "input_product_ms": 0.5, "share": 0.25,
        "floor": {"flops": 4e9, "bytes": 2e6, "flops_ms": 0.5, "bytes_ms": 0.1, "ms": 0.5, "bound": "flops"},
        "peak_bytes": {"ours": 1e6, "torch": 2e6}, "saved_bytes_per_layer": {"ours": 5, "torch": 9},
        "date": "2026-01-01T00:00:00+00:00",
    } | more  # fmt: skip


@pytest.fixture
def synthetic() -> Record:
    """NOT MEASURED: invented figures in the form of a GPU's record, to see that the report can show them."""
    machine = {
        "device": "Synthetic GPU", "cores": 16, "threads": 16, "engine": "avx2", "torch": "2.11.0",
        "triton": "3.6.0", "cuda": "13.0", "driver": "580.0", "clocks_mhz": ["1980", "2619"],
        "python": "3.12.0", "commit": "0123456789ab", "dirty": False,
    }  # fmt: skip
    wrong = row("wrong", 1.0, 2.0, parity={"ok": False})
    del wrong["ms"], wrong["ratio"], wrong["share"], wrong["skipped"]
    refused = wrong | {"name": "refused", "skipped": {"ours": "too wide"}}
    return {
        "machine": machine,
        "layer": {"2x512": row("2x512", 2.0, 3.0), "lost": row("lost", 2.0, 1.0), "wrong": wrong,
                  "refused": refused},
        "scaling": {
            "T": {
                "base": row("base", 1.0, 1.0), "axis": "T", "values": [1, 100],
                "ms": {"ours": [0.1, 2.0], "torch": [0.2, 3.0]}, "peak_bytes": {"ours": [1e6, 2e6]},
            }
        },
        "sample": {
            "2x512, 1 stream": {
                "H": 512, "L": 2, "V": 65, "B": 1, "ratio": 2.0,
                "ms": {"ours": times(1.0), "torch": times(2.0)},
                "chars_per_s": {"ours": 50_000.0, "torch": 25_000.0, "generate int8": 90_000.0},
                "ratios": {"generate int8": 3.6},
            }
        },
        "micro": {"cluster barrier": {"us": 0.123, "blocks": 16, "note": "words"}},
        "tests": {"counts": {"passed": 7, "failed": 1}},
        "sanitizer": {"racecheck": {"why": "", "passes": 3}},
    }  # fmt: skip


def test_an_old_record_still_has_its_page(old: Record) -> None:
    page = report.results_page(old, "old.json")
    assert "## CPU: AMD EPYC" in page and "commit 96028acec04f" in page
    assert (
        "| 2x512 | 512 | 2 | 100 | 100 | 512 | float32 | forward+backward | - | cpu | 558 | 590 | 632 |"
        in page
    )
    assert "| 2x512 | 5,901 | - | - | - | 231 | - | 79% |" in page
    assert "20,712" in page and "Beside another busy process" in page
    assert "### Sampling" not in page and "### Scaling" not in page


def test_a_gpu_record_has_all_its_parts(synthetic: Record) -> None:
    page = report.results_page(synthetic, "gpu.json", {"scaling": "s.png", "grid": "g.png"})
    assert "## GPU: Synthetic GPU" in page and "CUDA 13.0, driver 580.0, clocks 1980, 2619 MHz" in page
    assert "| grid | triton | 1.80 | 2.00 | 2.20 | 3.00 | - | 1.50 |" in page
    assert "| 2x512 | 20.0 | 15.0 | 0.500 | flops | 4.00 | 2.00 | 25% |" in page  # µs a step: 2 ms and 1.5 ms
    assert "| 2x512 | 2.00 | 3.00 | 3.00 | 4.00 | persistent | 1980 |" in page  # warm and cold
    assert "| row | fusedlstm | fusedlstm eager |" in page and "cuDNN off" in page and "oneDNN" not in page
    assert "- Haste: is not installed (2x512, lost)" in page
    assert page.count("| wrong result: no time |") == 1 and page.count("| not measured |") == 1
    assert "- fusedlstm: too wide (refused)" in page
    assert "| 512 | 2 | 65 | 1 | - | - | 90,000 | 50,000 | 25,000 | - | - | - | - | 3.60 | 2.00 |" in page
    assert "| cluster barrier | us 0.123, blocks 16 |" in page
    assert "- tests: 7 passed, 1 failed\n- compute-sanitizer racecheck: clean\n" in page
    assert "![time and memory against each size](s.png)" in page and "(g.png)" in page


def test_losses_are_told(old: Record, synthetic: Record) -> None:
    told = tables.losses(synthetic["layer"]).splitlines()
    assert len(told) == 1 and told[0].startswith("- lost (H=512, L=2, B=64, T=100, float16,")
    assert "takes 0.50 of our time" in told[0]
    lost = {name: row for name, row in old["layer"].items() if row["ratio"] < 1}
    lines = tables.losses(old["layer"]).splitlines()
    assert len(lines) == len(lost) > 1
    assert lines[0].startswith(f"- {min(lost, key=lambda name: lost[name]['ratio'])} ")
    assert tables.losses({"2x512": synthetic["layer"]["2x512"]}) == "Nowhere in this record."


def test_geometric_means(synthetic: Record) -> None:
    layer = synthetic["layer"] | {"x": row("x", 1.0, 3.0, mode="infer")}
    lines = tables.means(layer).splitlines()[2:]
    assert lines == [
        "| forward+backward | float16 | 2 | 0.87 |",  # (1.5 * 0.5) ** (1 / 2)
        "| infer | float16 | 1 | 3.00 |",
        "| all | all | 3 | 1.31 |",  # (1.5 * 0.5 * 3) ** (1 / 3)
    ]


def test_a_step_is_never_negative(synthetic: Record) -> None:
    long = synthetic["layer"]["2x512"] | {"input_product_ms": 2.5}
    assert tables.step_us(long) == pytest.approx(20) and tables.step_us_alone(long) is None


def test_the_transformer_is_told_from_what_is_compared(old: Record) -> None:
    net = old["train"]["2x512"]
    net["chars_per_s"]["gpt float32"] = 12_345.0
    net |= {"parameters": 1_000, "gpt": {"layers": 4, "width": 32, "parameters": 1_100}}
    assert "| 20,712 | 13,590 | 12,345 | 1.52 | 1.52 |" in tables.train({"2x512": net})
    words = tables.train_words(net)
    assert "1,100 parameters against the LSTM's 1,000" in words and "takes no part" in words


@pytest.fixture
def folder(tmp_path: Path, old: Record, synthetic: Record) -> Path:
    """Results of two devices, the CPU's twice."""
    newer = copy.deepcopy(old)
    newer["machine"]["commit"], newer["layer"]["2x512"]["date"] = "newer", "2099-01-01T00:00:00+00:00"
    for device, name, record in (
        ("cpu", "a", newer), ("cpu", "b", old), ("a-gpu", "c", synthetic),
    ):  # fmt: skip
        results_file = tmp_path / "results" / device / f"{name}.json"
        results_file.parent.mkdir(parents=True, exist_ok=True)
        results_file.write_text(json.dumps(record))
    (tmp_path / "results" / "no-record.json").write_text("{}")
    return tmp_path / "results"


def test_the_newest_record_of_each_device_cpus_first(folder: Path) -> None:
    assert [path.stem for path in report.newest(folder)] == ["a", "c"]


def test_a_newer_record_of_other_parts_comes_beside_the_layer(folder: Path, synthetic: Record) -> None:
    net = synthetic["sample"]["2x512, 1 stream"] | {"date": "2100-01-01T00:00:00+00:00"}
    of_parts = {
        "machine": json.loads((folder / "cpu" / "a.json").read_text())["machine"],
        "sample": {"n": net},
    }
    (folder / "cpu" / "d.json").write_text(json.dumps(of_parts))
    assert [path.stem for path in report.newest(folder)] == ["a", "d", "c"]
    text = report.summary(of_parts)
    assert text.startswith("Characters a second that a trained model writes:")
    assert "| 2x512 | 1 | - | - | 90,000 | 25,000 | - |" in text


def test_the_readme_has_a_gpu_table_only_from_a_gpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, readme = tmp_path / "RESULTS.md", tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n")
    both = report.newest(folder)
    for paths in (both, both[:1]):
        monkeypatch.setattr(report, "newest", lambda paths=paths: paths)
        report.main(None, page, readme)
        text, gpu = readme.read_text(), len(paths) == 2
        assert "commit newer" in text
        assert ("Synthetic GPU" in text) == ("cuDNN off ms" in text) == gpu
        assert ("## GPU" in page.read_text()) == gpu and "## CPU" in page.read_text()
        if gpu:
            assert "| 2x512 | 64, 100 | float16 | forward+backward | 2.00 | 3.00 | - | 1.50 |" in text
            assert "Over all 2 shapes fusedlstm is 0.87 times as fast" in text
            assert "nn.LSTM is faster at 1 of them" in text
            assert "(results/a-gpu/c-scaling.png)" in text
        tables_of = [line for line in text.splitlines() if line.startswith("| ")]
        assert tables_of and all(line.count("|") <= 9 for line in tables_of)
        for line in text.splitlines() + page.read_text().splitlines():
            if line.startswith("!["):
                assert (tmp_path / line.partition("](")[2].rstrip(")")).is_file()


def test_pictures_are_small_and_the_same_each_time(folder: Path, old: Record) -> None:
    path = folder / "cpu" / "b.json"
    drawn = plots.draw(old, path)
    assert set(drawn) == {"grid", "train"}
    files = [file for png in drawn.values() for file in (png, png.with_suffix(".svg"))]
    first = [file.read_bytes() for file in files]
    assert all(len(data) < 150_000 for data in first) and all(len(png) < 80_000 for png in first[::2])
    assert not any(b"<dc:date>" in data for data in first)
    plots.draw(old, path)
    assert [file.read_bytes() for file in files] == first


def test_the_grid_shows_every_row_and_names_the_losses(old: Record) -> None:
    figure = plots.grid(old)
    assert figure is not None
    (ax,) = figure.axes
    labels = {label.get_text(): label for label in ax.get_yticklabels()}
    assert set(labels) == set(old["layer"])
    ratios = [old["layer"][name]["ratio"] for name in labels]
    assert ratios == sorted(ratios)
    for name, label in labels.items():
        assert (label.get_color() == plots.COLOURS["torch"]) == (old["layer"][name]["ratio"] < 1)
    shown = sorted(float(text.get_text()) for text in ax.texts)
    assert shown == [float(f"{ratio:.2f}") for ratio in ratios]


def test_scaling_has_a_panel_for_each_axis_and_one_for_memory(synthetic: Record) -> None:
    figure = plots.scaling(synthetic)
    assert figure is not None
    ms, memory = (ax for ax in figure.axes if ax.get_lines())
    assert [list(line.get_ydata()) for line in ms.get_lines()] == [[0.1, 2.0], [0.2, 3.0]]
    assert [list(line.get_ydata()) for line in memory.get_lines()] == [[1.0, 2.0]]
    assert ms.get_xscale() == "log"
    none = {"base": row("base", 1.0, 1.0), "axis": "B", "values": [], "ms": {"ours": []}}
    without = plots.scaling(synthetic | {"scaling": synthetic["scaling"] | {"B": none}})
    assert without is not None and len([ax for ax in without.axes if ax.get_lines()]) == 2
    more = {axis: synthetic["scaling"]["T"] | {"axis": axis} for axis in ("B", "H", "L")}
    five = plots.scaling(synthetic | {"scaling": synthetic["scaling"] | more})  # on two lines of three
    assert five is not None
    shown = [bool(ax.get_lines()) for ax in five.axes]
    assert shown == [ax.axison for ax in five.axes] == [*[True] * 5, False]
    assert plots.scaling({"machine": synthetic["machine"], "scaling": {"B": none}}) is None
    assert plots.scaling({"machine": synthetic["machine"]}) is None


def test_a_change_within_the_spread_is_none(synthetic: Record, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = synthetic, copy.deepcopy(synthetic)
    after["layer"]["2x512"]["ms"] |= {"ours": times(1.0), "torch": times(2.9), "loop": times(80.0)}
    after["sample"]["2x512, 1 stream"]["ms"] = {"ours": times(0.5), "torch": times(2.1)}
    before["instructions"] = {"batch, forward, avx2": {"per_pass": 1000}}
    after["instructions"] = {"batch, forward, avx2": {"per_pass": 1001}}
    del after["layer"]["lost"]
    after["machine"]["new"] = 1
    lines = compare.table(before, after).splitlines()
    changes = [line for line in lines if " times as fast  " in line]
    assert {line[:50].strip(): line.split()[-1] for line in changes} == {
        "layer/2x512/ours": "faster",
        "layer/2x512/ours:eager": "same",
        "layer/2x512/torch": "same",
        "layer/2x512/loop": "slower",
        "sample/2x512, 1 stream/ours": "faster",
        "sample/2x512, 1 stream/torch": "same",
        "instructions/batch, forward, avx2": "slower",
    }
    factors = [float(line.partition(" times as fast")[0].split()[-1]) for line in changes]
    assert factors == sorted(factors) and factors[0] < 1 < factors[-1]
    assert "layer/lost/ours: only in the first" in lines
    assert [line for line in lines if "WRONG" in line] == [
        f"layer/wrong: WRONG RESULT in the {which}" for which in ("first", "second")
    ]
    assert lines[0] == "new: None -> 1"
    assert "geometric mean, layer, ours: 2.000 times as fast; 1 faster, 0 same, 0 slower" in lines
    assert lines[-1].startswith("geometric mean, ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (1.2, "1.20"), (99.96, "100"), (99.94, "99.9"), (1234.5, "1,234")],
)
def test_three_digits(value: float, text: str) -> None:
    assert tables.number(value) == text
