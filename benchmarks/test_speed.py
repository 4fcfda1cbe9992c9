"""A few rows under pytest-benchmark: `pytest benchmarks --benchmark-group-by=param:row`.

It times each contender to its end before the next, so that a busy machine may hurt one of them alone. Figures
that are published come from bench_layer, which runs them in turns.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import parity
from benchmarks.contenders import CONTENDERS, Pass
from benchmarks.shapes import ROWS

NAMES = ("2x128", "1x512-infer", "char-rnn-one-char", "series", "tagger", "encoder-forward", "2x128-bf16")


@cache
def checked(row: str) -> dict[str, Any]:
    """Whether ours is right on a row, asked once for all contenders."""
    return parity.check(ROWS[row], CONTENDERS)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("row", NAMES)
def test_speed(row: str, contender: str, benchmark: BenchmarkFixture) -> None:
    assert checked(row)["ok"], f"wrong result, no time: {checked(row)}"
    timed = Pass(ROWS[row], CONTENDERS[contender])
    with timed.context():
        benchmark(timed)
