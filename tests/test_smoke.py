"""The smoke run and the pytest-benchmark rows: a wrong result fails and has no time; a slow one passes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedlstm

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import results, smoke, test_speed
from benchmarks.contenders import CONTENDERS, Pass
from benchmarks.shapes import INFER, ROWS, Row

TINY = Row("2x128", H=8, L=1, B=2, T=3, I=4)
INFERENCE = Row("tiny-infer", H=8, L=1, B=2, T=3, I=4, mode=INFER)


class Wrong(fusedlstm.LSTM):
    """An LSTM that is off by a thousandth."""

    def forward(self, *args: Any) -> Any:
        y, states = super().forward(*args)
        assert isinstance(y, torch.Tensor)
        return y * 1.001, states


WRONG = CONTENDERS | {"ours": replace(CONTENDERS["ours"], lstm=Wrong)}


def test_right_results_pass_however_long_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    before = {TINY.name: {"ms": {"ours": {"p50": 1e-9}}, "ratio": 1e9}}
    assert smoke.run([TINY, INFERENCE], CONTENDERS, before)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("2x128") and "right; " in first and "on record: 0.000 ms" in first
    assert second.startswith("tiny-infer") and "right; " in second and "on record" not in second


@pytest.mark.parametrize("wrong_first", [True, False])
def test_one_wrong_result_fails_and_has_no_time(
    wrong_first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(row: Row, contenders: Any, quick: bool) -> results.Record:
        return measured(row, WRONG if (row is TINY) == wrong_first else contenders, quick=quick)

    measured = smoke.measure
    monkeypatch.setattr(smoke, "measure", measure)
    assert not smoke.run([TINY, INFERENCE], CONTENDERS, {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line, wrong in zip(lines, (wrong_first, not wrong_first), strict=True):
        assert ("WRONG RESULT" in line) == wrong and (" ms" in line) != wrong


def test_a_wrong_result_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "NAMES", ("char-rnn-one-char",))
    monkeypatch.setattr(smoke, "recorded", lambda machine: {})
    smoke.main()
    monkeypatch.setattr(smoke, "CONTENDERS", WRONG)
    with pytest.raises(SystemExit) as caught:
        smoke.main()
    assert caught.value.code not in (0, None)


def test_the_newest_record_of_this_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    machine = results.machine()
    path = results.path_for(machine)
    assert smoke.recorded(machine) == {}
    dates = {"a.json": "2026-01-02", "b.json": "2026-01-03", "c.json": "2026-01-01"}
    for name, date in dates.items():
        results.add(path.with_name(name), machine, "layer", "x", {"date": date, "from": name})
    results.add(path.parent.with_name("other") / "d.json", machine, "layer", "x", {"date": "2026-01-04"})
    assert smoke.recorded(machine)["x"]["from"] == "b.json"


def test_the_rows_exist() -> None:
    assert {*smoke.NAMES, *test_speed.NAMES} <= ROWS.keys()


def test_the_harness_times_only_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Callable[[], Any]] = []
    monkeypatch.setattr(test_speed, "CONTENDERS", WRONG)
    with pytest.raises(AssertionError, match="wrong result, no time"):
        test_speed.test_speed("char-rnn-one-char", "torch", timed.append)  # type: ignore[arg-type]
    assert not timed
    test_speed.checked.cache_clear()
    monkeypatch.setattr(test_speed, "CONTENDERS", CONTENDERS)
    test_speed.test_speed("char-rnn-one-char", "ours", timed.append)  # type: ignore[arg-type]
    assert [type(p) for p in timed] == [Pass]
