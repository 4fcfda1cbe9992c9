"""Instructions that the CPU engine executes, as valgrind counts them: the same on a busy machine.

Only those of the engine's own file count, not Python's that calls it. They tell whether a change makes the
engine do more work, not whether it takes longer: caches and ports are not in them. valgrind has no AVX-512.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import counted, results
from benchmarks.shapes import FORWARD, TRAIN, Row
from fusedlstm import _C

ROWS = [
    Row("batch", H=128, L=1, B=50, T=4, I=128, needs_dx=True),
    Row("one stream", H=256, L=1, B=1, T=16, I=256, needs_dx=True),
    Row("odd", H=33, L=1, B=17, T=31, I=5, needs_dx=True),
]
VALGRIND = (
    "valgrind", "--tool=callgrind", "--dump-before=getppid", "--compress-strings=no", "--compress-pos=no",
)  # fmt: skip


def count(rows: list[Row] = ROWS) -> dict[str, dict[str, Any]]:
    """Counts one layer's forward and backward in float32 on one thread, on every instruction set it can.

    Args:
        rows: of one layer and one direction.

    Returns:
        By name: "isa", "shape", and instructions "per_pass", "per_step" and "per_flop".

    Raises:
        FileNotFoundError: valgrind is not installed.
        RuntimeError: valgrind failed; its own words.
    """
    if shutil.which("valgrind") is None:
        raise FileNotFoundError("valgrind is not installed: get it from your distribution")
    shapes = {f"{row.T},{row.B},{row.I},{row.H}": row for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "part")
        program = [sys.executable, "-S", counted.__file__, _C.__file__, *shapes]
        done = subprocess.run(
            [*VALGRIND, f"--callgrind-out-file={out}", *program], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"valgrind ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        calls = [line.split() for line in done.stdout.splitlines()]
        # Every second part lies between the two marks of one call.
        parts = [out.with_suffix(f".{2 * k}").read_text() for k in range(1, len(calls) + 1)]
    found = {}
    for (isa, shape, name), part in zip(calls, parts, strict=True):
        row, instructions = shapes[shape], self_cost(part, _C.__file__)
        found[f"{row.name}, {name}, {isa}"] = {
            "isa": isa,
            "shape": f"T={row.T} B={row.B} I={row.I} H={row.H}",
            "per_pass": instructions,
            "per_step": instructions / row.T,
            "per_flop": instructions / flops(row, name),
        }
    return found


def flops(row: Row, name: str) -> int:
    """What the matrix products of the forward or of the backward need."""
    forward = replace(row, mode=FORWARD).flops
    return forward if name == "forward" else replace(row, mode=TRAIN).flops - forward


def self_cost(part: str, file: str) -> int:
    """Instructions that callgrind counted in a binary's own code, without those of what it calls.

    Args:
        part: callgrind's output, with strings and positions written out.
        file: the binary.
    """
    total, inside, inclusive = 0, False, False
    for line in part.splitlines():
        if line.startswith("ob="):
            inside = line == f"ob={file}"
        elif line[:1].isdigit():
            total += int(line.split()[-1]) if inside and not inclusive else 0
        inclusive = line.startswith("calls=")  # the line after it has the cost of the callee
    return total


def main(out: Path | None = None) -> None:
    """Counts instructions and adds them to this machine's record.

    Args:
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
    """
    machine = results.machine()
    out = out or results.path_for(machine)
    results.check(out, machine)
    try:
        found = count()
    except (FileNotFoundError, RuntimeError) as error:
        print(f"callgrind: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, values in found.items():
        results.add(out, machine, "instructions", name, values)
        print(
            f"{name:30} {values['shape']:24} {values['per_pass']:12,} a pass, "
            f"{values['per_step']:11,.0f} a step, {values['per_flop']:.4f} a FLOP"
        )
    print(f"written to {out}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
