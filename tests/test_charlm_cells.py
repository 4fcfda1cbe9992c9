"""Planted cells are found, chance is not, and a cell that is held costs what it was good for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import tyro
from scipy.signal import lfilter
from scipy.stats import spearmanr

from fusedlstm.charlm import effects as effects_module
from fusedlstm.charlm.cells import SHORTEST, Report, _ablation, _changes, _guess, _late, _picked, find
from fusedlstm.charlm.effects import LEAST_TURN, Scores, compare, effects, ranks
from fusedlstm.charlm.labels import quotes
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.commands import cells as command

SYMBOLS = '"abc'
H, PLANTED = 4, 2
GATES = {"i": 0, "f": 1, "g": 2, "o": 3}


def auroc(values: np.ndarray, label: np.ndarray) -> float:
    """The share of pairs that stand in the right order, equals counting half."""
    pairs = values[label][:, None] - values[~label][None]
    return float(np.mean((pairs > 0) + 0.5 * (pairs == 0)))


def smooth(source: np.random.Generator, n: int, columns: int, memory: float = 0.99) -> np.ndarray:
    """Noise whose neighbours are alike [n, columns]."""
    noise = source.normal(size=(n, columns)) * np.sqrt(1 - memory**2)
    return lfilter([1.0], [1.0, -memory], noise, axis=0)


def test_effects_are_auroc_and_spearman() -> None:
    source = np.random.default_rng(0)
    values = source.integers(0, 9, (200, 5)).astype(np.float16)  # with equals
    values[:, 3] = 1
    label, number = source.random(200) < 0.2, source.integers(0, 5, 200).astype(np.float32)
    number += values[:, 0]
    ranked = ranks(values)
    binary, scalar = effects(ranked, label), effects(ranked, number)
    assert binary.shape == scalar.shape == (1, 5)
    for k in range(5):
        assert binary[0, k] == pytest.approx(2 * auroc(values[:, k], label) - 1, abs=1e-6)
    for k in (0, 1, 2, 4):
        assert scalar[0, k] == pytest.approx(spearmanr(values[:, k], number).statistic, abs=1e-6)
    assert scalar[0, 3] == 0
    assert not effects(ranked, np.ones(200, np.float32)).any()


def test_turns_are_those_of_the_label() -> None:
    source = np.random.default_rng(0)
    ranked = ranks(source.normal(size=(100, 3)))
    for label in (source.random(100) < 0.5, source.normal(size=100)):
        turned = effects(ranked, label, (0, 7, 50))
        for row, turn in zip(turned, (0, 7, 50), strict=True):
            np.testing.assert_allclose(row, effects(ranked, np.roll(label, turn))[0], atol=1e-6)


def test_columns_are_ranked_alike_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(20, 7))
    whole = ranks(values)
    np.testing.assert_allclose(whole.sum(0), 0, atol=1e-6)
    assert whole.max() == pytest.approx((20 - 1) / 2 / 20)
    monkeypatch.setattr(effects_module, "COLUMNS", 3)
    np.testing.assert_array_equal(ranks(values), whole)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["binary", "scalar"])
def test_a_planted_cell_is_found(sign: int, kind: str) -> None:
    source = np.random.default_rng(1)
    cells, label = smooth(source, 4000, 30), smooth(source, 4000, 1)[:, 0]
    if kind == "binary":
        label = label > 0.5
    cells[:, 17] = sign * label + 0.5 * source.normal(size=4000)
    labels = {"planted": label, "other": smooth(source, 4000, 1)[:, 0] > 0}
    scores = compare(cells[:2000], cells[2000:], {k: (v[:2000], v[2000:]) for k, v in labels.items()})
    planted = scores["planted"]
    assert int(np.abs(planted.first).argmax()) == int(np.abs(planted.second).argmax()) == 17
    assert np.sign(planted.first[17]) == np.sign(planted.second[17]) == sign
    assert planted.p[17] == pytest.approx(1 / 201)
    assert np.delete(planted.p, 17).min() > 0.05
    assert scores["other"].p.min() > 0.05


def test_chance_is_found_as_often_as_it_says() -> None:
    least = []
    for seed in range(80):
        source = np.random.default_rng(seed)
        n, cells = 3000, smooth(source, 3000, 8)
        tracks = smooth(source, n, 3)
        # One holds seldom, one is a number: neither may take more than its part.
        labels = {"half": tracks[:, 0] > 0, "seldom": tracks[:, 1] > 1.5, "number": tracks[:, 2]}
        scores = compare(cells, cells, {name: (label, label) for name, label in labels.items()}, seed)
        least.append(min(found.p.min() for found in scores.values()))
    assert np.mean(np.array(least) <= 0.05) <= 0.14  # of 80, more than 11 come once in 1000 times
    assert 0.33 <= np.mean(np.array(least) <= 0.5) <= 0.67


def test_without_labels_there_are_no_scores() -> None:
    assert compare(np.zeros((3, 2)), np.zeros((3, 2)), {}) == {}


def test_cells_that_never_change_are_no_finding() -> None:
    label = np.random.default_rng(0).random(2000) < 0.5
    found = compare(np.ones((2000, 2)), np.ones((2000, 2)), {"a": (label, label)})["a"]
    assert (found.p == 1).all()


def text_with_quotes(n: int, seed: int = 0) -> str:
    """b and c at random, now and then a quotation of a's."""
    source, text = np.random.default_rng(seed), ""
    while len(text) < n:
        text += "".join(source.choice(["b", "c"], source.integers(20, 90)))
        text += '"' + "a" * source.integers(5, 40) + '"'
    return text[:n]


def ids_of(text: str) -> np.ndarray:
    return np.array([SYMBOLS.index(character) for character in text], np.uint8)


@pytest.fixture
def model() -> CharLM:
    """A model in which one cell is 1 inside quotes and 0 outside, and foretells a's there."""
    made = CharLM(len(SYMBOLS), H, 1).eval()
    w_ih, w_hh, b_ih, b_hh = made.lstm.all_weights[0]
    rows = {gate: k * H + PLANTED for gate, k in GATES.items()}
    one = float(np.tanh(np.tanh(5.0)))  # the cell's h when it is on
    with torch.no_grad():
        for row in rows.values():
            w_ih[row], w_hh[row], b_ih[row], b_hh[row] = 0.0, 0.0, 0.0, 0.0
        w_ih[rows["i"]] = torch.tensor([20.0, -20.0, -20.0, -20.0])  # written at a quote, else kept
        w_ih[rows["f"]] = torch.tensor([-20.0, 20.0, 20.0, 20.0])
        b_ih[rows["g"]], w_hh[rows["g"], PLANTED] = 5.0, -5.0 / one  # to the other of 0 and 1
        b_ih[rows["o"]] = 20.0
        made.decoder.weight.zero_()
        made.decoder.weight[1, PLANTED] = 12.0 / one
        made.decoder.bias.copy_(torch.tensor([-2.0, -6.0, 0.0, 0.0]))
    return made


@pytest.fixture(params=["tanh_c", "c", "h"])
def report(model: CharLM, request: pytest.FixtureRequest) -> Report:
    text, n = text_with_quotes(9000), 8000
    while text[: n // 2].count('"') % 2 == 0:  # the second half begins inside quotes
        n += 2
    text, noise = text[:n], smooth(np.random.default_rng(3), n, 1)[:, 0]
    labels = {"quotes": quotes(text.encode()), "noise": noise, "never": np.zeros(n, bool)}
    return find(model, ids_of(text), labels, SYMBOLS, 10, request.param)


def test_the_cell_of_quotes_is_found_in_a_model(report: Report) -> None:
    found = report.findings[0]
    assert (found.label, found.kind) == ("quotes", "binary")
    assert (found.layer, found.cell, found.sign) == (0, PLANTED, 1)
    assert found.d == pytest.approx(1)
    assert found.p == pytest.approx(1 / 201)
    assert 0.8 < found.by_character < 1  # a quote does not tell whether it opens
    assert found.late == pytest.approx(1)
    assert found.cells[0] == (0, PLANTED)
    assert (0, PLANTED) in found.remembering


def test_the_cell_of_quotes_is_good_for_quotes_only(report: Report) -> None:
    ablation = report.findings[0].ablation
    assert ablation
    assert ablation.inside > 2
    assert abs(ablation.outside) < 0.2
    assert 1 < ablation.low < ablation.inside - ablation.outside < ablation.high


def test_what_is_not_there_is_not_found(report: Report) -> None:
    noise = next(found for found in report.findings if found.label == "noise")
    assert noise.p > 0.05
    assert noise.ablation is None
    assert noise.late is None
    assert noise.cells == noise.remembering == []
    assert report.skipped == ["never"]


def test_a_report_in_all_its_forms(report: Report) -> None:
    counted = {cell for found in report.findings for cell in found.cells}
    assert report.answer.startswith(f"{len(counted)} of {H} cells ({len(counted) / H:.1%})")
    record = json.loads(report.to_json())
    assert record["findings"][0]["cell"] == PLANTED
    assert record["answer"] == report.answer
    html = report._repr_html_()
    assert html.count("<tr>") == 1 + len(report.findings)
    assert f"<td>+0.{PLANTED}</td><td>AUROC</td><td>1.000</td>" in html
    assert len(report.table().rows) == len(report.findings)
    text, values = report.findings[0].excerpt
    assert len(text) == len(values)
    assert '"' in text
    strip = report.findings[0].strip()
    assert strip.plain == text
    inside = quotes(text.encode()) if text[0] != "a" else ~quotes(text.encode())
    for span, on in zip(strip.spans, inside, strict=True):
        red, _, blue = (int(v) for v in str(span.style).partition("rgb(")[2].rstrip(")").split(","))
        assert (red == 255 and blue < 10) == bool(on)


def test_a_cell_of_the_second_layer_is_counted_as_such() -> None:
    made = CharLM(len(SYMBOLS), H, 2).eval()
    text = text_with_quotes(SHORTEST)
    report = find(made, ids_of(text), {"a": np.array([c == "a" for c in text])}, SYMBOLS, 10)
    found = report.findings[0]
    from fusedlstm.charlm.activations import activations

    values = activations(made, ids_of(text)).values["tanh_c"][SHORTEST // 2 :, found.layer, found.cell]
    label = np.array([c == "a" for c in text])[SHORTEST // 2 :]
    expected = 2 * auroc(found.sign * values.astype(np.float32), label) - 1
    assert found.d == pytest.approx(expected, abs=1e-4)
    assert all(layer < 2 and cell < H for layer, cell in found.cells)


def test_a_guess_from_the_last_character() -> None:
    ids, before = np.array([0, 0, 1, 1, 0, 1, 2]), np.array([1.0, 0.0, 1.0, 1.0])
    assert _guess(ids, before)[:, 0].tolist() == [0.5, 1.0, 0.75]


def test_the_first_half_picks_and_the_second_counts() -> None:
    first = np.array([0.5, -0.9, 0.3, -0.2, 0.4])
    second = np.array([0.99, -0.85, -0.95, -0.9, 0.7])
    p = np.array([0.005, 0.005, 0.005, 0.05, 0.005])
    assert _picked(Scores(first, second, p)) == (1, -1, [0, 3, 1])
    assert _picked(Scores(-first, -second, p + 0.001)) == (1, 1, [0, 1])


def test_a_label_that_hardly_changes_is_not_asked() -> None:
    label = np.zeros(200)
    label[:20] = label[100:120] = 1
    assert _changes(label, 100)
    assert _changes(label > 0, 100)
    label[5] = 0
    assert not _changes(label, 100)
    assert not _changes(label[::-1], 100)


def test_late_is_when_a_label_has_held_for_long() -> None:
    label = np.arange(400) % 40 >= 20
    early = label & (np.arange(400) % 40 < 30)  # a cell that forgets after 10 characters
    assert _late(early[200:].astype(float), label, 0) == pytest.approx(0.5)
    assert _late(early[200:].astype(float), label, 10) == 0
    assert _late(-label[200:].astype(float), label, 10) == pytest.approx(-1)
    assert _late(label[200:].astype(float), label, 20) is None
    assert _late(label[200:].astype(float), label.astype(np.float32), 10) is None


def test_an_ablation_counts_what_follows_a_label() -> None:
    label = np.random.default_rng(0).random((10, 500)) < 0.3
    change = np.full((10, 500), np.nan)
    change[:, 1:] = np.where(label[:, :-1], 2.0, 0.5)
    found = _ablation(change, label)
    assert (found.inside, found.outside) == (2.0, 0.5)
    assert found.low == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5)
    assert _ablation(change, label.astype(np.float32) * 3) == found


def test_the_interval_of_an_ablation_is_that_of_a_mean() -> None:
    source = np.random.default_rng(0)
    label = source.random((80, 501)) < 0.3
    change = source.normal(size=(80, 501)).astype(np.float32)
    found = _ablation(change, label)
    width = 2 * 1.96 * np.sqrt(1 / label.sum() + 1 / (~label).sum())
    assert found.high - found.low == pytest.approx(width, rel=0.25)
    assert found.low < found.inside - found.outside < found.high
    one_chunk = np.repeat(change[:1], 80, 0), np.repeat(label[:1], 80, 0)  # no chunk differs from another
    same = _ablation(*one_chunk)
    assert same.high - same.low == pytest.approx(0, abs=1e-9)


def test_what_does_not_serve_is_said(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CharLMError, match=f"at least {SHORTEST} characters.*got {SHORTEST - 1}"):
        find(model, np.zeros(SHORTEST - 1, np.uint8), {}, SYMBOLS, 10)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(CharLMError, match=r"pip install fusedlstm\[inside\]"):
        ranks(np.zeros((3, 1)))


def test_turns_are_far_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def noted(
        ranked: np.ndarray, label: np.ndarray, turns: np.ndarray | tuple[int, ...] = (0,)
    ) -> np.ndarray:
        taken.extend(turns if len(turns) > 1 else ())
        return effects(ranked, label, turns)

    monkeypatch.setattr(effects_module, "effects", noted)
    label = np.random.default_rng(0).random(2500) < 0.5
    compare(np.zeros((2500, 1)), np.zeros((2500, 1)), {"a": (label, label)})
    assert len(taken) == 200
    assert min(taken) >= LEAST_TURN >= 100
    assert max(taken) <= 2500 - LEAST_TURN


@dataclass
class Vocab:
    """What the command asks of a vocabulary."""

    kind: str
    symbols: str

    def encode(self, text: bytes) -> np.ndarray:
        encoding = "latin-1" if self.kind == "bytes" else "utf-8"
        return np.array([self.symbols.index(character) for character in text.decode(encoding)], np.uint8)


@pytest.fixture
def run(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> Callable[[Vocab], None]:
    """Makes the command find the model, with a vocabulary."""

    def given(vocab: Vocab) -> None:
        monkeypatch.setattr(command, "load_model", lambda run: (model, vocab))
        saved = SimpleNamespace(settings=SimpleNamespace(seq_length=10))
        monkeypatch.setattr(command.checkpoint, "load", lambda run: saved)

    return given


def test_the_command(run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Vocab("bytes", SYMBOLS))
    (tmp_path / "text").write_text(text_with_quotes(9000))
    out = tmp_path / "report.json"
    command.Cells(
        "run", str(tmp_path / "text"), ("quotes", "digit"), ("a=a+",), characters=6000, out=str(out)
    )()
    shown = capsys.readouterr().out
    assert "quotes" in shown
    assert "not asked, as they hardly change in this text: digit" in shown
    assert "of 4 cells" in shown
    record = json.loads(out.read_text())
    assert record["characters"] == 6000
    assert {found["label"] for found in record["findings"]} == {"quotes", "a"}
    assert record["skipped"] == ["digit"]
    page = tmp_path / "report.html"
    command.Cells("run", str(tmp_path / "text"), ("quotes",), out=str(page))()
    assert "<table>" in page.read_text()


def test_the_flags_of_the_command() -> None:
    args = "RUN TEXT --labels c digit --regex a=b --regex c=d --function m:f --characters 5000 --quantity h"
    parsed = tyro.cli(command.Cells, args=args.split())
    regexes = ("a=b", "c=d")
    assert parsed == command.Cells("RUN", "TEXT", ("c", "digit"), regexes, ("m:f",), 5000, "h")


def test_the_command_reads_characters(run: Callable, tmp_path: Path) -> None:
    run(Vocab("chars", '"aéc'))  # é in the place of b
    text = text_with_quotes(7000).replace("b", "é")
    (tmp_path / "text").write_text(text, "utf-8")
    out = tmp_path / "report.json"
    command.Cells("run", str(tmp_path / "text"), ("quotes",), characters=6000, out=str(out))()
    record = json.loads(out.read_text())
    assert record["characters"] == 6000
    assert (record["findings"][0]["cell"], record["findings"][0]["d"]) == (PLANTED, pytest.approx(1))


def test_the_command_says_what_is_wrong(run: Callable, tmp_path: Path) -> None:
    run(Vocab("chars", '"abc'))
    with pytest.raises(CharLMError, match=f"--characters must be at least {SHORTEST}, got 10"):
        command.Cells("run", "text", characters=10)
    with pytest.raises(CharLMError, match=r"--out must be .*\.json or \*\.html, got 'report.pdf'"):
        command.Cells("run", "text", out="report.pdf")
    with pytest.raises(CharLMError, match=r"cannot read .*missing: No such file"):
        command.Cells("run", str(tmp_path / "missing"))()
    (tmp_path / "text").write_bytes(b"a" * 9 + b"\xff")
    with pytest.raises(CharLMError, match=r"must be UTF-8 for this model: .*0xff.*position 9"):
        command.Cells("run", str(tmp_path / "text"))()
    (tmp_path / "text").write_text(text_with_quotes(6000))
    with pytest.raises(CharLMError, match=r"--out: cannot write .*: No such file"):
        command.Cells("run", str(tmp_path / "text"), ("quotes",), out=str(tmp_path / "no" / "r.json"))()
