"""All that a machine with a GPU must tell, by priority, within a given time and without a network.

`make gpu`, or `python -m benchmarks.gpu`. Only the standard library is needed here: every step runs in a
process of its own, so that one that crashes, hangs or lacks a package costs the others nothing. What is there
is written after each step.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import gpu_child
from benchmarks.gpu_record import append_log, merge, write
from benchmarks.gpu_steps import STEPS, Asked, Record, Step

RESULTS = gpu_child.ROOT / "benchmarks" / "results"
FIRST = ("build",)  # which a part needs too: without the engine nothing imports


@dataclass
class Run:
    """One run: its folder, its end on the monotonic clock, and the record so far."""

    folder: Path
    end: float
    shapes: str = "gpu"
    commit: str = ""
    record: Record = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def do(self, step: Step, later: Sequence[Step], missing: str) -> None:
        """Runs a step, unless this machine or the clock forbids it, and writes what it found."""
        seconds = allowance(step, later, self.left)
        path = gpu_child.environment()["PATH"]
        absent = [name for name in step.needs if shutil.which(name, path=path) is None]
        if missing or absent:
            state, took, reason = "failed", 0.0, missing or f"not on the PATH: {', '.join(absent)}"
        elif seconds < step.least:
            state, took, reason = "not begun", 0.0, f"{max(seconds, 0):.0f} s left, it needs {step.least:.0f}"
        else:
            state, took, reason = self._run(step, seconds)
        said = _said(state, took, reason, step)
        self.record["steps"][step.name] = said | {"figures": self._read(step, step.figures)}
        write(self.folder / "gpu.json", self.record)

    def _run(self, step: Step, seconds: float) -> tuple[str, float, str]:
        part, log = self.folder / "gpu.part.json", self.folder / "gpu.part.log"
        part.unlink(missing_ok=True)
        arguments = {"out": part, **step.arguments(Asked(seconds, self.shapes))}
        try:
            outcome = gpu_child.run(gpu_child.call(step.module, arguments), seconds, log)
        finally:
            unread = merge(self.record, part, self.commit)
            append_log(self.folder / "gpu.log", step.name, log)
        wrong = self._read(step, step.wrong)
        reason = "; ".join(filter(None, [outcome.reason, unread if outcome.passed else "", *wrong[:3]]))
        return "failed" if reason else "passed", outcome.seconds, reason

    def _read(self, step: Step, read: Callable[[Record], list[str]]) -> list[str]:
        """What a step found; a part that is not as expected is told, and harms nothing."""
        if (step.part or step.name) not in self.record:
            return []
        try:
            return read(self.record)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            return [f"its part of the record cannot be read: {type(error).__name__} {error}"]


def allowance(step: Step, later: Sequence[Step], left: float) -> float:
    """Seconds that a step may take: not what later steps will need, unless it would then have too little."""
    unclaimed = left - sum(s.expected for s in later)
    return min(step.limit, left, max(unclaimed, step.expected))


def missing_gpu() -> str:
    """Why there is no GPU to use, by the driver's own word, or nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if shutil.which("nvidia-smi"):
            return ""  # it may lie where only others look: let each step see for itself
        return f"no NVIDIA GPU can be used: the driver does not load ({error})"
    count = ctypes.c_int(0)
    for call in (lambda: driver.cuInit(0), lambda: driver.cuDeviceGetCount(ctypes.byref(count))):
        if code := call():
            return f"no NVIDIA GPU can be used: the driver says error {code}"
    return "" if count.value else "no NVIDIA GPU can be used: the driver finds none"


def run(steps: Sequence[Step], now: Run, missing: str) -> bool:
    """Runs the steps and prints the table.

    Args:
        steps: in order of priority.
        now: the run.
        missing: why there is no GPU; then every step fails with this reason.

    Returns:
        Whether every step that was begun passed.
    """
    begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
    now.record.update({"begun": begun, "seconds": round(now.left), "steps": {}})
    try:
        for k, step in enumerate(steps):
            print(f"[{now.left:4.0f} s left] {step.name}: {step.what}", flush=True)
            try:
                now.do(step, steps[k + 1 :], missing)
            except Exception as error:  # of this program itself: the steps that are left shall not pay for it
                now.record["steps"][step.name] = _said("failed", 0.0, f"the runner: {error!r}", step)
            said = now.record["steps"][step.name]
            print(f"    {said['state']} after {said['seconds']:.0f} s {said['reason']}", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    finally:
        write(now.folder / "gpu.json", now.record)
        print(table(steps, now.record), flush=True)
    done = [said["state"] for said in now.record["steps"].values()]
    return "failed" not in done and len(done) == len(steps)


def _said(state: str, seconds: float, reason: str, step: Step) -> Record:
    return {"state": state, "seconds": round(seconds, 1), "reason": reason, "what": step.what, "figures": []}


def table(steps: Sequence[Step], record: Record) -> str:
    """A line for each step, and below it what it found."""
    lines = [f"{'step':10} {'state':10} {'s':>5}  what it found, or why not"]
    nothing = {"state": "interrupted", "seconds": 0.0, "reason": "", "figures": []}
    for step in steps:
        said = record["steps"].get(step.name, nothing)
        lines.append(
            f"{step.name:10} {said['state']:10} {said['seconds']:5.0f}  {said['reason'][:300]}".rstrip()
        )
        lines += [f"{'':28}{figure}" for figure in said["figures"]]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line; returns the exit code."""
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it (%(default)s)")
    parser.add_argument("--only", default="", help=f"steps with commas between, of: {', '.join(names)}")
    parser.add_argument("--shapes", default="gpu", help="set or rows of the layer, of benchmarks/shapes.py")
    default = Path(os.environ.get("OUT") or RESULTS)
    parser.add_argument("--out", type=Path, default=default, help="folder ($OUT, or benchmarks/results)")
    parser.add_argument(
        "--commit", default="", help="of this tree, where git does not tell it; ...-dirty if changed"
    )
    parser.add_argument("--dry", action="store_true", help="only say what each step would do")
    asked = parser.parse_args(arguments)
    only = asked.only.split(",") if asked.only else names
    if unknown := sorted(set(only) - set(names)):
        parser.error(f"--only must be of {', '.join(names)}, got {', '.join(unknown)}")
    steps = [step for step in STEPS if step.name in only or step.name in FIRST]
    if asked.dry:
        for step in steps:
            needs = f"; needs {', '.join(step.needs)}" if step.needs else ""
            print(f"{step.name:10} {step.what} ({step.module}, about {step.expected:.0f} s{needs})")
        return 0
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "gpu.log").unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is there is then written and shown
    now = Run(asked.out, time.monotonic() + 60 * asked.minutes, asked.shapes, asked.commit)
    return 0 if run(steps, now, missing_gpu()) else 1


if __name__ == "__main__":
    sys.exit(main())
