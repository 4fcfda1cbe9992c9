"""The experiments run again: their tables are sound, their reports say what the runs hold."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from torch.nn import functional as F

from fusedlstm.charlm import checkpoint, corpus, repro
from fusedlstm.charlm.experiments import (
    CELLS,
    EXPERIMENTS,
    PAPER_NATS,
    RECIPES,
    Experiment,
    scaled,
)
from fusedlstm.charlm.ngram import NGram
from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.commands.repro import NGrams, Paper, Post, Repro, parse_orders

LINES = b"".join(b"%d bottles of beer on the wall\n" % n for n in range(100, 0, -1))
TINY = {
    "rnn_size": 12,
    "num_layers": 1,
    "batch_size": 4,
    "seq_length": 10,
    "epochs": 1.0,
    "sample_length": 20,
}


@pytest.fixture
def beer(tmp_path: Path) -> str:
    file = tmp_path / "beer.txt"
    file.write_bytes(LINES)
    return str(file)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    changes = TINY | {"rnn_size": 20, "sample_at": (30, 60), "val_fraction": 0.2}
    experiment = Experiment("a tiny one", "some text", changes, "rnn_size", 1.57, (0.0, 1.0), novel=True)
    monkeypatch.setitem(EXPERIMENTS, "tiny", experiment)
    monkeypatch.setattr(repro, "SAMPLE_LENGTH", 50)
    monkeypatch.setattr(repro, "NAMES_LENGTH", 400)
    return "tiny"


def cells_of(report: str, row: str) -> list[str]:
    """The cells of a row of a Markdown table, by what its first begins with."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {row}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.01])
def test_every_experiment_is_settings(name: str, scale: float) -> None:
    experiment = EXPERIMENTS[name]
    settings = Settings().but(scaled(experiment, scale))
    full = Settings().but(experiment.settings)
    if scale == 1:
        assert settings == full
    assert settings.rnn_size == max(min(full.rnn_size, 16), round(scale * full.rnn_size))
    assert settings.dropout == pytest.approx(scale * full.dropout)
    assert settings.steps == full.steps
    assert (settings.epochs is None) == (full.epochs is None)
    assert settings.epochs is None or 1 <= settings.epochs <= (full.epochs or 0)


def test_linux_has_about_ten_million_parameters() -> None:
    settings = Settings().but(EXPERIMENTS["linux"].settings)
    H, L, V = settings.rnn_size, settings.num_layers, 101
    count = 4 * H * (V + H + 2) + (L - 1) * 4 * H * (2 * H + 2) + V * (H + 1)
    assert count == pytest.approx(1e7, rel=0.05)


def parameters(layers: int, size: int, V: int = 87) -> int:
    return 4 * size * (V + size + 1) + (layers - 1) * 4 * size * (2 * size + 1) + V * (size + 1)


@pytest.mark.parametrize("column", range(4))
def test_cells_of_a_row_of_the_paper_are_of_one_size(column: int) -> None:
    counts = [parameters(*cell) for cell in list(CELLS.values())[column::4]]
    assert len(counts) == 3
    assert max(counts) < 1.03 * min(counts)
    assert all(name == f"{layers}x{size}" for name, (layers, size) in CELLS.items())
    assert PAPER_NATS["1x64"] == 1.449 and PAPER_NATS["2x84"] == 1.227 and PAPER_NATS["3x241"] == 1.082


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_settings(recipe: str) -> None:
    for layers, size in CELLS.values():
        settings = Settings().but(RECIPES[recipe](layers, size))
        assert settings.dtype == "float32"
    paper = Settings().but(RECIPES["paper"](1, 64))
    expected = ("rmsprop", 2e-3, 0.95, 0.95, 10.0, 0.08, 100, 100, 50.0, 5.0, "value")
    assert expected == (
        paper.optimizer, paper.learning_rate, paper.decay_rate, paper.learning_rate_decay,
        paper.learning_rate_decay_after, paper.init_range, paper.batch_size, paper.seq_length, paper.epochs,
        paper.grad_clip, paper.clip,
    )  # fmt: skip


def test_hello(tmp_path: Path) -> None:
    report = repro.post("hello", (), "", 1.0, str(tmp_path / "run")).read_text("utf-8")
    assert cells_of(report, "reads → next") == ["reads → next", "e", "h", "l", "o", "predicts"]
    rows = [line for line in report.splitlines() if re.match(r"\| [helo] → ", line)]
    assert [row.strip("| ")[0] for row in rows] == list("hell")
    assert [row.strip("| ")[-1] for row in rows] == list("ello")
    for row, right in zip(rows, "ello", strict=True):  # the largest of the logits is the letter's
        logits = [float(cell) for cell in row.split("|")[2:6]]
        assert "ehlo"[int(np.argmax(logits))] == right
    settings = checkpoint.load(tmp_path / "run").settings
    assert (settings.model, settings.rnn_size, settings.num_layers) == ("rnn", 3, 1)


def test_the_report_of_a_run(tmp_path: Path, beer: str, tiny: str) -> None:
    folder = tmp_path / "run"
    file = repro.post(tiny, [beer], "", 1.0, str(folder))
    assert file == folder / "REPORT.md"
    report, saved = file.read_text("utf-8"), checkpoint.load(folder)
    text = corpus.load(saved.settings)
    assert report.startswith("# a tiny one\n")
    assert (
        f"{len(LINES):,} bytes" in report and text.sha256 in report and "Not from there: rnn_size" in report
    )
    assert "\nrnn_size = 20\n" in report and "\nseed = 123\n" in report and beer not in report
    assert cells_of(report, "steps")[1] == f"{saved.step:,}"
    best = min(m["val"] for m in saved.metrics if "val" in m)
    assert cells_of(report, "lowest validation")[1] == f"{best / math.log(2):.3f}"
    assert cells_of(report, "the post's validation")[1] == "1.57"
    chars = saved.step * 40 / saved.seconds
    assert cells_of(report, "characters a second")[1] == f"{chars:,.0f}"
    assert "### Temperature 0\n" in report and "### Temperature 1\n" in report
    assert "### After 30 steps" in report and "### After 60 steps" in report
    assert (folder / "samples" / "step-00000030.txt").read_text("utf-8") in report
    novel, lines = map(int, re.findall(r"novel lines: (\d+) of (\d+)", report)[0])
    assert 0 <= novel <= lines and lines > 0


def test_new_names_are_those_that_the_text_lacks(
    tmp_path: Path, beer: str, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = "99 bottles of beer on the wall\n\nno bottles at all\n1 bottles of beer on the wall\n99 bott"
    monkeypatch.setattr(repro, "write", lambda *args: iter([written[:20], written[20:]]))
    report = repro.post(tiny, [beer], "", 1.0, str(tmp_path / "run")).read_text("utf-8")
    assert "novel lines: 1 of 3 (33.3 %)" in report


def test_a_run_goes_on_and_is_not_mixed_with_another(tmp_path: Path, beer: str, tiny: str) -> None:
    out = str(tmp_path / "run")
    first = repro.post(tiny, [beer], "", 1.0, out).read_text("utf-8")
    seconds = checkpoint.load(out).seconds
    assert repro.post(tiny, [beer], "", 1.0, out).read_text("utf-8") == first  # nothing was trained
    assert checkpoint.load(out).seconds == seconds
    other = tmp_path / "other.txt"
    other.write_bytes(LINES[::-1])
    for changed in ({"files": [str(other)]}, {"scale": 0.5, "files": [beer]}):
        with pytest.raises(CharLMError, match=r"holds a run of other settings \((files|rnn_size)"):
            repro.post(tiny, changed["files"], "", changed.get("scale", 1.0), out)


@pytest.mark.parametrize("name", ["wikipedia", "names"])
def test_without_a_text_it_says_where_there_is_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(CharLMError, match=rf"repro {name} needs a FILE .*http"):
        repro.post(name, (), "", 1.0, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scale", [0.0, 1.5, math.nan])
def test_scales_that_are_none(tmp_path: Path, beer: str, scale: float) -> None:
    with pytest.raises(CharLMError, match="--scale must be above 0 and at most 1"):
        repro.post("latex", [beer], "", scale, str(tmp_path / "run"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repro, "STREAMS", 4)
    monkeypatch.setattr(repro, "CHUNK", 10)


def test_the_parts_of_the_paper_lie_all_over_the_text(small_parts: None) -> None:
    ids = np.arange(4 * 10 * 19 + 7)  # 19 chunks in each stream: 15, 1 and 3
    train, val, test = repro.paper_parts(ids)
    assert (len(train), len(val), len(test)) == (600, 40, 120)
    np.testing.assert_array_equal(train.reshape(4, 150)[1], np.arange(190, 340))
    np.testing.assert_array_equal(val.reshape(4, 10)[:, 0], [150, 340, 530, 720])
    np.testing.assert_array_equal(test.reshape(4, 30)[2], np.arange(540, 570))
    with pytest.raises(CharLMError, match=r"at least 400 ids .*, got 399"):
        repro.paper_parts(np.arange(399))


def test_the_table_of_the_paper(
    tmp_path: Path, beer: str, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "fast", lambda layers, size: TINY)
    monkeypatch.setitem(CELLS, "2x45", (2, 6))
    folder = tmp_path / "paper"
    arguments: Any = [beer], "", ("2x45",), ("lstm", "gru"), "fast", str(folder)
    report = repro.paper(*arguments).read_text("utf-8")
    ids = corpus.load(Settings(files=(beer,))).ids
    test = torch.from_numpy(repro.paper_parts(ids)[2].astype(np.int64))
    for kind, cell, published in [("lstm", "2x45", "1.442"), ("gru", "2x45", "-")]:
        run = folder / f"{kind}-{cell}-fast"
        row, best = cells_of(report, f"{kind} {cell}"), checkpoint.load(run, "best")
        assert (best.settings.model, best.settings.num_layers, best.settings.rnn_size) == (kind, 2, 6)
        with torch.no_grad():
            logits = load_model(run, "best")[0](test[:-1, None])[0][:, 0]
        assert row[1] == f"{F.cross_entropy(logits, test[1:]).item():.3f}"
        assert row[2] == published
        assert row[3] == f"{min(m['val'] for m in checkpoint.load(run).metrics if 'val' in m):.3f}"
    seconds = {run: checkpoint.load(run).seconds for run in folder.glob("*-fast")}
    assert len(seconds) == 2
    repro.paper(*arguments)
    assert seconds == {run: checkpoint.load(run).seconds for run in seconds}  # nothing was trained again


def test_cells_that_the_paper_lacks(tmp_path: Path, beer: str) -> None:
    with pytest.raises(CharLMError, match=r"--cells must be of 1x64, .*, got 4x10, 9x9"):
        repro.paper([beer], "", ("9x9", "1x64", "4x10"), ("lstm",), "fast", str(tmp_path / "paper"))


def test_the_table_of_n_grams(beer: str, small_parts: None) -> None:
    losses = repro.ngram([beer], "", [1, 2, 6])
    text = corpus.load(Settings(files=(beer,)))
    train, val, test = repro.paper_parts(text.ids)
    model = NGram(train, len(text.vocab), 6)
    for order, *found in losses:
        assert found == [model.losses(part)[order - 1].mean() for part in (val, test)]
    table = repro.ngram_table(losses)
    expected = [losses[1][1], losses[1][2], losses[1][2] / math.log(2), 2.399]
    assert cells_of(table, "2")[1:] == [f"{value:.3f}" for value in expected]
    assert cells_of(table, "1 ")[-1] == "-"


@pytest.mark.parametrize(
    ("text", "orders"), [("1-3", [1, 2, 3]), ("20, 4", [4, 20]), ("7", [7]), ("2-4,3-5", [2, 3, 4, 5])]
)
def test_orders(text: str, orders: list[int]) -> None:
    assert parse_orders(text) == orders


@pytest.mark.parametrize("text", ["", "0", "3-1", "a", "1-", "1,,2", "-2", "1000"])
def test_orders_that_are_none(text: str) -> None:
    with pytest.raises(CharLMError, match="--orders must be numbers and ranges"):
        parse_orders(text)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        *(([name, "F"], Post(name, ("F",))) for name in EXPERIMENTS),
        (["latex", "F", "--scale", "0.25", "--out", "O"], Post("latex", ("F",), scale=0.25, out="O")),
        (["names", "--data", "names"], Post("names", data="names")),
        (["paper", "F", "--cells", "1x64", "2x84"], Paper(("F",), cells=("1x64", "2x84"))),
        (["paper", "F", "--kinds", "gru", "rnn"], Paper(("F",), kinds=("gru", "rnn"))),
        (["paper", "--recipe", "paper", "--data", "warandpeace"], Paper(data="warandpeace", recipe="paper")),
        (["ngram", "F", "--orders", "1-9"], NGrams(("F",), orders="1-9")),
    ],
)
def test_the_command_line(args: Sequence[str], expected: Any) -> None:
    assert tyro.cli(Repro, args=args).experiment == expected


def test_the_commands_call_what_they_name(
    tmp_path: Path, beer: str, tiny: str, small_parts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Repro(NGrams((beer,), orders="2"))()
    assert capsys.readouterr().out == repro.ngram_table(repro.ngram([beer], "", [2]))
    Repro(Post(tiny, (beer,), out=str(tmp_path / "run")))()
    assert f"report: {tmp_path / 'run' / 'REPORT.md'}" in capsys.readouterr().out
