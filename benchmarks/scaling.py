"""Time against T, B, H, layers and threads, memory against T: one size at a time, all else as in a base."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, parity, results
from benchmarks.contenders import CONTENDERS, ON, Contender, Pass
from benchmarks.shapes import Row
from fusedlstm.timing import Runner, interleave, summary

BASES = {
    "cpu": Row("base", H=256, L=1, B=32, T=64, I=256),
    "cuda": Row("base", H=512, L=1, B=128, T=256, I=512, dtype="float16"),
}
VALUES: dict[str, list[int]] = {
    "T": [1, 4, 16, 64, 256, 1024],
    "B": [1, 8, 32, 128, 512],
    "H": [32, 64, 128, 256, 512, 1024],
    "L": [1, 2, 3, 4],
}
SECONDS = 0.02, 0.5  # for each contender at each value: at least, at most


def axes(device: str) -> dict[str, list[int]]:
    """What is varied; threads only on a CPU."""
    return VALUES | ({"threads": list(range(1, torch.get_num_threads() + 1))} if device == "cpu" else {})


def at(base: Row, axis: str, value: int) -> Row:
    """The base with one size changed; the input stays as wide as the hidden units."""
    if axis == "threads":
        return base
    changed = {axis: value} | ({"I": value} if axis == "H" else {})
    return replace(base, name=f"{axis}={value}", **changed)


def measure(
    axis: str,
    values: list[int],
    base: Row,
    deadline: float,
    contenders: Mapping[str, Contender] = CONTENDERS,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times every contender at each value, in turns.

    Args:
        axis: a size of the row, or "threads".
        values: from the quickest on.
        base: what else holds.
        deadline: of time.monotonic(); no further value is begun after it.
        contenders: by name.
        device: "cpu" or "cuda".

    Returns:
        The part of the record: "values" are those that were reached; None stands for a contender that refuses
        a value, or whose memory was not reached.
    """
    found: dict[str, Any] = {"axis": axis, "base": base.record(), "values": []}
    found["ms"] = {name: [] for name in contenders}
    began = time.monotonic()
    timed_by = began + (deadline - began) / (2 if axis == "T" else 1)  # memory wants the other half
    for k, value in enumerate(values):
        left = (timed_by - time.monotonic()) / (len(values) - k)
        if left <= 0:
            break
        row = at(base, axis, value)
        with threads(value if axis == "threads" else torch.get_num_threads()):
            able = {name: c for name, c in contenders.items() if not c.refuses(row)}
            runners = {name: Runner(p, p.context) for name, p in passes(row, able).items()}
            seconds = min(max(left / (2 * len(contenders)), SECONDS[0]), SECONDS[1])
            taken = interleave(runners, seconds, device=device)
        for name in contenders:
            found["ms"][name].append(summary(taken[name])["p50"] if name in taken else None)
        found["values"].append(value)
    if axis == "T":
        rows = [at(base, axis, value) for value in found["values"]]
        peaks = [[_peak(row, c, deadline) for c in contenders.values()] for row in rows]
        found["peak_bytes"] = {name: [of[k] for of in peaks] for k, name in enumerate(contenders)}
    return found


def _peak(row: Row, contender: Contender, deadline: float) -> int | None:
    """Peak memory in bytes, unless it is late or the row is refused."""
    late = time.monotonic() > deadline
    return None if late or contender.refuses(row) else memory.peak_bytes(row, contender)


def passes(row: Row, contenders: Mapping[str, Contender]) -> dict[str, Pass]:
    return {name: Pass(row, contender) for name, contender in contenders.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch and the engine, which asks it, compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(device: str = "cpu", minutes: float = 6.0, out: Path | None = None) -> None:
    """Measures how time and memory grow, and adds it to this machine's record.

    Args:
        device: cpu or cuda.
        minutes: about how long; values that do not fit in are left out.
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
    """
    machine, base = results.machine(device), BASES[device]
    out = out or results.path_for(machine)
    results.check(out, machine)
    right = parity.check(base, ON[device])
    if not right["ok"]:
        raise SystemExit(f"scaling: the result is wrong at {base}, no time was taken: {right}")
    contenders = {name: c for name, c in ON[device].items() if name not in right["wrong"]}
    end, todo = time.monotonic() + 60 * minutes, axes(device)
    for k, (axis, values) in enumerate(todo.items()):
        deadline = time.monotonic() + (end - time.monotonic()) / (len(todo) - k)
        found = measure(axis, values, base, deadline, contenders, device)
        results.add(out, machine, "scaling", axis, found | {"parity": right})
        for name, ms in found["ms"].items():
            times = ", ".join("-" if m is None else f"{m:.3f}" for m in ms)
            print(f"{axis} {found['values']}: {name} {times} ms", flush=True)
    print(f"written to {out}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
