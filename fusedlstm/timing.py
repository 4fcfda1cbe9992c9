"""Interleaved timing, on a CPU by the clock and on a GPU by events.

pytest-benchmark times one function to its end before the next, so a drifting clock or a busy neighbour would
fall on one of them alone: hence this small loop of our own.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Context = Callable[[], AbstractContextManager[Any]]
ROUNDS = 5, 10  # at least, at most
SETTLE_SECONDS = 0.003  # OpenMP's idle threads spin for about so long, on the core that is needed next


@dataclass(frozen=True)
class Runner:
    """Something to time, and the setting in which it runs."""

    run: Callable[[], Any]
    context: Context


def once(runner: Runner, device: str = "cpu") -> float:
    """Seconds of one run, after one to warm up."""
    with runner.context():
        runner.run()
        return seconds_of(runner.run, device)


def interleave(
    runners: Mapping[str, Runner],
    seconds: float,
    rounds: int | None = None,
    before_round: Callable[[], Any] = lambda: None,
    device: str = "cpu",
) -> dict[str, list[float]]:
    """Times all runners in turn, round after round, the order rotated.

    Args:
        runners: by name.
        seconds: to spend on each of them at least.
        rounds: how many; None for as many as its time allows the slowest, within ROUNDS.
        before_round: called at the start of each.
        device: what they compute on.

    Returns:
        Seconds of every run, by name.
    """
    one = {name: once(runner, device) for name, runner in runners.items()}
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
                    found[name] += _turn(runners[name].run, turn, device)
            order = order[1:] + order[:1]
    finally:
        gc.enable()
    return found


def summary(seconds: list[float]) -> dict[str, float]:
    """Quantiles in ms, and how many runs they are of."""
    p20, p50, p80 = (float(q) for q in 1e3 * np.quantile(seconds, (0.2, 0.5, 0.8)))
    return {"p20": p20, "p50": p50, "p80": p80, "runs": len(seconds)}


def _turn(run: Callable[[], Any], seconds: float, device: str) -> list[float]:
    """Seconds of each run, one after another until they add up to the given ones."""
    found, left = list[float](), seconds
    while not found or left > 0:
        found.append(seconds_of(run, device))
        left -= found[-1]
    return found


def seconds_of(run: Callable[[], Any], device: str) -> float:
    """Seconds of one run, as it finds the caches."""
    if torch.device(device).type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
