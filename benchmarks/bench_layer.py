"""The layer against torch.nn.LSTM and NumPy, row by row: parity, then interleaved times, then memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import memory, parity, results
from benchmarks.contenders import CONTENDERS, ON, Contender, Pass, numpy_pass, shortened
from benchmarks.shapes import INFER, ROWS, SETS, TARGETS, Row
from benchmarks.timing import Runner, busy_process, interleave, once, summary
from fusedlstm import _C
from fusedlstm.backends import resolve
from fusedlstm.functional import spec

TOO_SLOW = 10.0, 2.0  # times torch as it comes, and seconds a pass: beyond both it is not run whole
NUMPY_SECONDS = 2.0
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2}  # as in csrc/recurrence.h


def measure(
    row: Row, contenders: Mapping[str, Contender] = CONTENDERS, quick: bool = False
) -> dict[str, Any]:
    """Measures one row; without parity it has no times.

    Args:
        row: what to measure.
        contenders: by name, with "ours" and "torch" among them.
        quick: a fifth of the time, no NumPy, no memory.
    """
    device = contenders["ours"].device
    passes = {name: Pass(row, contender) for name, contender in contenders.items()}
    found = row.record() | {"auto": _auto(row, device), "parity": parity.check(row, contenders)}
    if not found["parity"]["ok"]:
        return found
    found["skipped"] = _skipped(row, contenders)
    ceilings: list[float] = []
    seconds = interleave(
        {name: Runner(p, p.context) for name, p in passes.items() if name not in found["skipped"]},
        0.1 if quick else 0.5,
        before_round=lambda: ceilings.append(_ceiling(row, device, 0.02 if quick else 0.05)),
        device=device,
    )
    ms = {name: summary(values) for name, values in seconds.items()}
    if not quick and device == "cpu":
        ms |= numpy_ms(row)
    faster = min(ms[name]["p50"] for name in ms if name.startswith("torch"))
    ceiling = float(np.median(ceilings))
    found |= {
        "ms": ms,
        "ratio": faster / ms["ours"]["p50"],
        "ceiling_gflops": ceiling / 1e9,
        "share": row.flops / (1e-3 * ms["ours"]["p50"]) / ceiling,
    }
    if row.mode != INFER:
        found["saved_bytes_per_layer"] = {
            name: passes[name].saved_bytes() // row.L for name in ("ours", "torch")
        } | {"allowed": row.saved_bytes_allowed}
    if not quick:
        found["peak_bytes"] = {n: memory.peak_bytes(row, contenders[n]) for n in ms if n in contenders}
    return found


def measure_busy(row: Row, seconds: float = 3.0) -> dict[str, Any]:
    """Times ours and torch alone, then beside a process that keeps one core busy."""
    runners = {
        name: Runner(Pass(row, CONTENDERS[name]), CONTENDERS[name].context) for name in ("ours", "torch")
    }
    alone = {name: summary(values) for name, values in interleave(runners, seconds).items()}
    with busy_process():
        busy = {name: summary(values) for name, values in interleave(runners, seconds).items()}
    slowdown = {name: busy[name]["p50"] / alone[name]["p50"] for name in runners}
    return row.record() | {"alone_ms": alone, "busy_ms": busy, "slowdown": slowdown}


def main(
    rows: str = "all",
    out: Path | None = None,
    quick: bool = False,
    busy: bool = False,
    device: str = "cpu",
    minutes: float = 60.0,
) -> None:
    """Measures the layer and adds it to this machine's record.

    Args:
        rows: names from benchmarks/shapes.py, of rows or of its SETS, with commas between.
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
        quick: a fifth of the time, no NumPy, no memory.
        busy: instead, the first row beside another busy process.
        device: cpu or cuda.
        minutes: after which no further row is begun.
    """
    asked = [name for part in rows.split(",") for name in SETS.get(part, [part])]
    unknown = sorted(set(asked) - set(ROWS))
    if unknown:
        known = ", ".join((*SETS, *ROWS))
        raise SystemExit(f"--rows must be among {known}, got {', '.join(unknown)}")
    machine = results.machine(device)
    out = out or results.path_for(machine)
    results.check(out, machine)
    if busy:
        row = TARGETS[0] if rows == "all" else ROWS[asked[0]]
        found = measure_busy(row)
        results.add(out, machine, "busy", row.name, found)
        print(f"{row.name} beside a busy process: " + _list(found["slowdown"], "{:.2f} times its time alone"))
    else:
        chosen = [ROWS[name] for name in dict.fromkeys(asked) if device in ROWS[name].devices]
        run(chosen, out, machine, quick, ON[device], time.monotonic() + 60 * minutes)
    print(f"written to {out}")


def run(
    rows: Sequence[Row],
    out: Path,
    machine: results.Record,
    quick: bool = False,
    contenders: Mapping[str, Contender] = CONTENDERS,
    deadline: float = math.inf,
) -> None:
    """Measures rows until time.monotonic() is the deadline; prints and writes each as soon as it is there."""
    for k, row in enumerate(rows, 1):
        if time.monotonic() > deadline:
            print(f"time is up: {', '.join(row.name for row in rows[k - 1 :])} were not measured", flush=True)
            return
        found = measure(row, contenders, quick)
        results.add(out, machine, "layer", row.name, found)
        print(f"[{k:2}/{len(rows)}] {row.name:22} {_line(found)}", flush=True)


def _line(found: dict[str, Any]) -> str:
    if "ms" not in found:
        return f"PARITY FAILED, no time: {found['parity']}"
    times = _list({name: ms["p50"] for name, ms in found["ms"].items()}, "{:.3f}")
    skipped = "".join(f"; {name} skipped: {why}" for name, why in found["skipped"].items())
    return (
        f"ms: {times}; {found['ratio']:.2f} times the faster torch; "
        f"{found['share']:.0%} of {found['ceiling_gflops']:.0f} GFLOP/s{skipped}"
    )


def _list(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())


def _skipped(row: Row, contenders: Mapping[str, Contender]) -> dict[str, str]:
    """The contenders that would take too long, as a short pass tells, and why."""
    short, found = shortened(row), {}
    probes = {n: once(Runner(Pass(short, c), c.context), c.device) for n, c in contenders.items()}
    for name in probes.keys() - {"ours", "torch"}:
        times, seconds = probes[name] / probes["torch"], probes[name] * row.T / short.T
        if times > TOO_SLOW[0] and seconds > TOO_SLOW[1]:
            found[name] = f"{times:.0f} times torch as it comes at T={short.T}, or {seconds:.0f} s a pass"
    return found


def numpy_ms(row: Row) -> dict[str, dict[str, float]]:
    """One run of the reference, unless a short one tells that it would take too long."""
    short = shortened(row)
    if once(Runner(numpy_pass(short), nullcontext)) * row.T / short.T > NUMPY_SECONDS:
        return {}
    return {"numpy": summary([once(Runner(numpy_pass(row), nullcontext))])}


def _ceiling(row: Row, device: str, seconds: float) -> float:
    """FLOP/s of the device's product alone: the engine's micro-kernel, or on a GPU a large torch.mm."""
    if device == "cpu":
        return _C.peak(DTYPES[row.dtype], torch.get_num_threads(), seconds)
    a = torch.randn(4096, 4096, device=device, dtype=row.torch_dtype)
    product = Runner(lambda: a @ a, nullcontext)
    return 2 * 4096**3 / once(product, device)


def _auto(row: Row, device: str) -> str:
    """Whom backend="auto" takes."""
    weights = list(torch.nn.LSTM(row.I, row.H, dtype=row.torch_dtype, device=device).parameters())
    asked = spec(weights, row.T, row.B, True, row.L, row.bidirectional, False, False, row.mode != INFER)
    return resolve(asked, "auto")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
