"""Interleaved timing.

pytest-benchmark times one function to its end before the next, so a drifting clock or a busy neighbour would
fall on one of them alone: hence this small loop of our own.
"""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.contenders import Context

ROUNDS = 5, 10  # at least, at most
SETTLE_SECONDS = 0.003  # OpenMP's idle threads spin for about so long, on the core that is needed next


@dataclass(frozen=True)
class Runner:
    """Something to time, and the setting in which it runs."""

    run: Callable[[], Any]
    context: Context


def once(runner: Runner) -> float:
    """Seconds of one run, after one to warm up."""
    with runner.context():
        runner.run()
        return _seconds(runner.run)


def interleave(
    runners: Mapping[str, Runner],
    seconds: float,
    rounds: int | None = None,
    before_round: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Times all runners in turn, round after round, the order rotated.

    Args:
        runners: by name.
        seconds: to spend on each of them at least.
        rounds: how many; None for as many as its time allows the slowest, within ROUNDS.
        before_round: called at the start of each.

    Returns:
        Seconds of every run, by name.
    """
    one = {name: once(runner) for name, runner in runners.items()}
    rounds = rounds or min(max(math.ceil(seconds / max(one.values())), ROUNDS[0]), ROUNDS[1])
    turn = seconds / rounds
    order, found = list(runners), {name: list[float]() for name in runners}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            before_round()
            for name in order:
                time.sleep(SETTLE_SECONDS)
                with runners[name].context():
                    if one[name] < turn:
                        runners[name].run()  # caches are warm in a loop of short calls, as with a user
                    found[name] += _turn(runners[name].run, turn)
            order = order[1:] + order[:1]
    finally:
        gc.enable()
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Quantiles in ms, and how many runs they are of."""
    p20, p50, p80 = (float(q) for q in 1e3 * np.quantile(seconds, (0.2, 0.5, 0.8)))
    return {"p20": p20, "p50": p50, "p80": p80, "runs": len(seconds)}


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that takes as much of one core as it gets."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _turn(run: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of each run, one after another until they add up to the given ones."""
    found, left = list[float](), seconds
    while not found or left > 0:
        found.append(_seconds(run))
        left -= found[-1]
    return found


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
