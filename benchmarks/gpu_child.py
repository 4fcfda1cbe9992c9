"""Runs a step in a process of its own, which can crash or hang without harm, and ends all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GRACE_SECONDS = 5.0  # from asking a process to end until it is killed
TOOLS = ("bin", "compute-sanitizer")  # folders of a CUDA installation with programs


@dataclass(frozen=True)
class Outcome:
    """How a process ended: whether well, after how long, and else why, in a line."""

    passed: bool
    seconds: float
    reason: str = ""


def call(module: str, arguments: Mapping[str, Any]) -> list[str]:
    """The command that calls main of a module; their own command lines want packages that may be absent."""
    code = f"from pathlib import PosixPath; from {module} import main; main(**{dict(arguments)!r})"
    return [sys.executable, "-c", code]


def environment() -> dict[str, str]:
    """Where the project, and the programs of CUDA, are found; no minutes go into compiling for autotuning."""
    cuda = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    path = os.pathsep.join([os.environ.get("PATH", ""), *(str(cuda / folder) for folder in TOOLS)])
    python = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    tune = {"FUSEDLSTM_AUTOTUNE": os.environ.get("FUSEDLSTM_AUTOTUNE", "0")}
    return os.environ | tune | {"PATH": path, "PYTHONPATH": python, "PYTHONUNBUFFERED": "1"}


def run(command: list[str], seconds: float, log: Path) -> Outcome:
    """Runs a command in the project's folder.

    Args:
        command: and its arguments.
        seconds: after which it is ended, and with it every process that it started.
        log: where its output goes.
    """
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
            env=environment(), start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(max(seconds, 0.0))
            reason = "" if process.returncode == 0 else _why(process.returncode, log)
        except subprocess.TimeoutExpired:
            reason = f"stopped after {seconds:.0f} s, when its time was up"
        finally:
            _end(process)
    return Outcome(not reason, time.monotonic() - began, reason)


def _why(code: int, log: Path) -> str:
    with log.open("rb") as text:
        text.seek(max(0, log.stat().st_size - 10_000))
        lines = [line.strip() for line in text.read().decode(errors="replace").splitlines() if line.strip()]
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{ended}: {lines[-1][:300]}" if lines else f"{ended}, and it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends what is left of the process and its group."""
    for sign, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, sign)
            process.wait(patience)
