"""Compiles and runs the micro-benchmarks, each program by itself; one that fails or hangs spoils no other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MICRO = Path(__file__).resolve().parent / "micro"
SOURCES = tuple(sorted(MICRO.glob("*.cu")))
NVCC = ("nvcc", "-O3", "-std=c++17", "-lineinfo")
PROGRAM_SECONDS = 25.0
CLUSTERS = 90  # compute capability, times ten, from which there are clusters

Figure = dict[str, Any]


def main(out: Path, minutes: float = 1.0) -> None:
    """Measures, and writes part "micro" of a record after each program.

    Args:
        out: the record.
        minutes: after which no further program is begun.
    """
    end = time.monotonic() + 60 * minutes
    micro: dict[str, Figure] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in programs(Path(folder)):
            began = time.monotonic()
            seconds = min(PROGRAM_SECONDS, end - began)
            figures, why = run(command, seconds) if seconds > 1 else ([], "not begun: no time left")
            for figure in figures:
                print(figure)
                micro[figure["name"]] = figure
                failed |= {figure["name"]: figure["error"]} if "error" in figure else {}
            failed |= {name: why} if why else {}
            print(f"{name}: {len(figures)} figures in {time.monotonic() - began:.1f} s {why}", flush=True)
            out.write_text(json.dumps({"micro": micro, "micro_failed": failed}, indent=1))
    if failed:
        name, why = next(iter(failed.items()))
        raise SystemExit(f"{len(failed)} failed, first {name}: {why}")


def programs(folder: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Name and command of each program, compiled when its turn comes."""
    architecture = gencode()
    with ThreadPoolExecutor() as pool:
        compiled = {s.stem: pool.submit(compile_program, s, folder / s.stem, architecture) for s in SOURCES}
        for name, program in compiled.items():
            yield name, program.result()
    for name in ("triton_barrier", "triton_ids"):
        yield name, (sys.executable, "-m", f"benchmarks.micro.{name}")


def compile_program(source: Path, program: Path, architecture: str) -> Sequence[str]:
    """The command that runs it, or one that says why it does not compile."""
    done = subprocess.run([*NVCC, architecture, source, "-o", program], capture_output=True, text=True)
    if done.returncode == 0:
        return (str(program),)
    print(done.stderr)
    return ("sh", "-c", f"echo 'nvcc does not compile {source.name}' >&2; exit 1")


def gencode() -> str:
    """For nvcc: the GPU's own architecture, with what only it has."""
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"], capture_output=True, text=True
    )
    found = re.match(r"(\d+)\.(\d)", done.stdout)
    if shutil.which("nvcc") is None or not found:
        raise SystemExit(
            f"nvcc must be on the PATH, and nvidia-smi name a compute capability, got {done.stdout!r}"
        )
    capability = int(found[1] + found[2])
    if capability < CLUSTERS:
        raise SystemExit(f"the micro-benchmarks need compute capability 9.0 (clusters), got {found[0]}")
    return f"-gencode=arch=compute_{capability}a,code=sm_{capability}a"


def run(command: Sequence[str], seconds: float) -> tuple[list[Figure], str]:
    """The figures that a program printed, and why it did not end well, or nothing."""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as errors:
        why = ""
        try:
            code = subprocess.run(
                command,
                stdout=log,
                stderr=errors,
                timeout=seconds,
                cwd=MICRO.parent.parent,
                env=dict(os.environ),
            ).returncode
        except subprocess.TimeoutExpired:
            code, why = 0, f"stopped after {seconds:.0f} s"
        log.seek(0)
        errors.seek(0)
        figures = [json.loads(line) for line in log if line.startswith("{") and line.endswith("}\n")]
        if code and not any("error" in figure for figure in figures):
            last = [line for line in errors.read().splitlines() if line.strip()][-1:]
            why = "".join(last) or f"exit code {code}"
        return figures, why
