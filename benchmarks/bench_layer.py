"""The layer against torch.nn.LSTM and others, row by row: parity, then interleaved times, then memory."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import device as hardware
from benchmarks import memory, parity, results
from benchmarks.contenders import CONTENDERS, ON, Contender, Pass, asked, failure, shortened
from benchmarks.rivals import RIVALS
from benchmarks.shapes import INFER, ROWS, SETS, TARGETS, Row
from benchmarks.timing import Runner, busy_process, interleave, once, summary
from fusedlstm.backends import kernel, resolve

TOO_SLOW = 10.0, 2.0  # times torch as it comes, and seconds a pass: beyond both it is not run whole
COLD_RUNS = 10
OURS_SHARE = 0.8  # of a GPU's time, if others' code shall have some
INPUTS = "input products"


def measure(
    row: Row, contenders: Mapping[str, Contender] = CONTENDERS, quick: bool = False
) -> dict[str, Any]:
    """Measures one row; without parity it has no times.

    Args:
        row: what to measure.
        contenders: by name, with "ours" and "torch" among them; who cannot take the row, would take too
            long or is wrong has a reason under "skipped" in place of a time.
        quick: a fifth of the time, no memory, nothing cold.
    """
    device = contenders["ours"].device
    found = row.record() | {"auto": resolve(asked(row, device), "auto"), "skipped": _skipped(row, contenders)}
    if "ours" in found["skipped"]:
        return found
    contenders = {name: c for name, c in contenders.items() if name not in found["skipped"]}
    found["parity"] = parity.check(row, contenders)
    if not found["parity"]["ok"]:
        return found
    found["skipped"] |= found["parity"]["wrong"]
    contenders = {name: c for name, c in contenders.items() if name not in found["skipped"]}
    passes = {name: Pass(row, contender) for name, contender in contenders.items()}
    found["kernel"] = _kernel(row, device, passes["ours"])
    runners = {name: Runner(p, p.context) for name, p in passes.items()}
    inputs = Runner(hardware.InputProducts(row, device), hardware.products_as_cudnn)
    ceilings: list[tuple[float, float]] = []
    seconds = interleave(
        runners | {INPUTS: inputs},
        0.1 if quick else 0.5,
        before_round=lambda: ceilings.append(_ceilings(row, device, 0.02 if quick else 0.05)),
        device=device,
    )
    if device == "cuda":
        found |= _gpu(row)  # at once, before its clock falls
    found["input_product_ms"] = summary(seconds.pop(INPUTS))["p50"]
    ms = {name: summary(values) for name, values in seconds.items()}
    ours = ms["ours"]["p50"]
    flops_per_s, bytes_per_s = (float(np.median(values)) for values in zip(*ceilings, strict=True))
    floor = hardware.floor(row, flops_per_s, bytes_per_s)
    found |= {
        "ms": ms,
        "ratio": min(ms[name]["p50"] for name in ms if name.startswith("torch")) / ours,
        "ceiling_gflops": flops_per_s / 1e9,
        "bandwidth_gb_per_s": bytes_per_s / 1e9,
        "floor": floor,
        "share": floor["ms"] / ours,
    }
    judged = [name for name in ms if name.startswith(("ours", "torch"))]
    if row.mode != INFER:
        found["saved_bytes_per_layer"] = {
            name: passes[name].saved_bytes() // row.L for name in ("ours", "torch")
        } | {"allowed": row.saved_bytes_allowed}
    if not quick and device == "cuda":
        cold = hardware.cold_seconds({name: runners[name] for name in judged}, COLD_RUNS, device)
        found["cold_ms"] = {name: summary(values) for name, values in cold.items()}
    if not quick:
        found["peak_bytes"] = {name: memory.peak_bytes(row, contenders[name]) for name in judged}
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
        quick: a fifth of the time, none of others' code, no memory.
        busy: instead, the first row beside another busy process.
        device: cpu or cuda.
        minutes: after which no further row is begun.
    """
    asked_for = [name for part in rows.split(",") for name in SETS.get(part, [part])]
    unknown = sorted(set(asked_for) - set(ROWS))
    if unknown:
        known = ", ".join((*SETS, *ROWS))
        raise SystemExit(f"--rows must be among {known}, got {', '.join(unknown)}")
    machine = results.machine(device)
    out = out or results.path_for(machine)
    results.check(out, machine)
    if busy:
        row = TARGETS[0] if rows == "all" else ROWS[asked_for[0]]
        found = measure_busy(row)
        results.add(out, machine, "busy", row.name, found)
        print(f"{row.name} beside a busy process: " + _list(found["slowdown"], "{:.2f} times its time alone"))
    else:
        chosen = [ROWS[name] for name in dict.fromkeys(asked_for) if device in ROWS[name].devices]
        slow = [row for row in chosen if not hardware.multiplies(row.dtype, device)]
        if slow:
            print(f"this processor has no bfloat16: {', '.join(row.name for row in slow)} are left out")
            chosen = [row for row in chosen if row not in slow]
        began, seconds = time.monotonic(), 60 * minutes
        others = {} if quick else RIVALS[device]
        if device == "cpu":
            run(chosen, out, machine, quick, ON[device] | others, began + seconds)
        else:  # a GPU's time is short: ours and cuDNN first, others then at a few rows
            some = [row for row in chosen if others and row.name in SETS["rivals"]]
            run(chosen, out, machine, quick, ON[device], began + (OURS_SHARE if some else 1) * seconds)
            run_rivals(some, out, machine, ON[device], others, began + seconds)
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
        if _late(rows[k - 1 :], deadline):
            return
        try:
            found = measure(row, contenders, quick)
        except Exception as error:  # told as wrong: the rows that are left shall not pay for it
            traceback.print_exc()
            found = row.record() | {"parity": {"ok": False, "why": failure(error)}}
        results.add(out, machine, "layer", row.name, found)
        print(f"[{k:2}/{len(rows)}] {row.name:22} {_line(found)}", flush=True)


def run_rivals(
    rows: Sequence[Row],
    out: Path,
    machine: results.Record,
    contenders: Mapping[str, Contender],
    rivals: Mapping[str, Contender],
    deadline: float = math.inf,
) -> None:
    """Adds rivals to rows of the record that have times, in few runs beside ours and torch.

    Args:
        rows: which.
        out: the record.
        machine: as the record has it.
        contenders: with "ours" and "torch" among them.
        rivals: by name; one that may compile for longer than is left is not begun.
        deadline: of time.monotonic(); no further row is begun after it.
    """
    for k, row in enumerate(rows):
        if _late(rows[k:], deadline):
            return
        first = results.load(out)["layer"].get(row.name, {})
        if "ms" not in first:
            continue
        begun, left = dict(contenders), deadline - time.monotonic()
        for name, rival in rivals.items():
            if rival.setup_seconds < left:
                begun[name] = rival
                left -= rival.setup_seconds
        found = measure(row, begun, quick=True)
        ms = {name: times for name, times in found.get("ms", {}).items() if name in rivals}
        late = dict.fromkeys(rivals.keys() - begun.keys(), "no time was left for it")
        skipped = first["skipped"] | found["skipped"] | late
        results.add(out, machine, "layer", row.name, first | {"ms": first["ms"] | ms, "skipped": skipped})
        times = _list({name: values["p50"] for name, values in ms.items()}, "{:.3f}")
        print(f"{row.name:22} others' ms: {times}{_reasons(skipped)}", flush=True)


def _late(rows: Sequence[Row], deadline: float) -> bool:
    late = time.monotonic() > deadline
    if late:
        print(f"time is up: {', '.join(row.name for row in rows)} were not measured", flush=True)
    return late


def _line(found: dict[str, Any]) -> str:
    if "ours" in found.get("skipped", {}):
        return f"not measured: {found['skipped']['ours']}"
    if "ms" not in found:
        return f"PARITY FAILED, no time: {found['parity']}"
    times = _list({name: ms["p50"] for name, ms in found["ms"].items()}, "{:.3f}")
    floor = found["floor"]
    return (
        f"ms: {times}; {found['ratio']:.2f} times the faster torch; {found['share']:.0%} of the floor "
        f"({floor['ms']:.3f} ms by {floor['bound']}); input products {found['input_product_ms']:.3f} ms; "
        f"{found['kernel'] or found['auto']}{_reasons(found['skipped'])}"
    )


def _reasons(skipped: Mapping[str, str]) -> str:
    return "".join(f"; {name} skipped: {why}" for name, why in skipped.items())


def _list(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())


def _skipped(row: Row, contenders: Mapping[str, Contender]) -> dict[str, str]:
    """The contenders that refuse a row, fail at some steps of it or would take too long, and why."""
    short, seconds, found = shortened(row), dict[str, float](), dict[str, str]()
    for name, contender in contenders.items():
        try:
            why = contender.refuses(row)
            if not why:
                seconds[name] = once(Runner(Pass(short, contender), contender.context), contender.device)
        except Exception as error:  # others' code, of any kind
            if name in ("ours", "torch"):
                raise
            why = failure(error)
        if why:
            found[name] = why
    for name in seconds.keys() - {"ours", "torch"}:
        times, whole = seconds[name] / seconds["torch"], seconds[name] * row.T / short.T
        if times > TOO_SLOW[0] and whole > TOO_SLOW[1]:
            found[name] = f"{times:.0f} times torch as it comes at T={short.T}, or {whole:.0f} s a pass"
    return found


def _kernel(row: Row, device: str, ours: Pass) -> str | None:
    spec = asked(row, device)
    return kernel(spec, resolve(spec, getattr(ours.module, "backend", "auto")))


def _ceilings(row: Row, device: str, seconds: float) -> tuple[float, float]:
    return hardware.flops_per_s(row.dtype, device, seconds), hardware.bytes_per_s(device)


def _gpu(row: Row) -> dict[str, Any]:
    """The GPU's clock now, and which way cuDNN goes on it."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    path = hardware.cudnn_path(row, (card.major, card.minor), card.multi_processor_count)
    return {"clock_mhz": hardware.clock_mhz(), "cudnn": path}


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
