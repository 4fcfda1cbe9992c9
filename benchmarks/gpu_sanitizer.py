"""compute-sanitizer over every kernel of ours at small sizes, its tools beside each other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOOLS = ("memcheck", "racecheck", "synccheck")
SMALL = (sys.executable, "-m", "benchmarks.gpu_small")
OURS = ("--kernel-regex", "kns=lstm")  # or the libraries' kernels would be watched too
CLEAN = re.compile(r"ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards")
PROBLEM = re.compile(r"=========\s+(?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY)(\S.*)")


def main(out: Path, minutes: float = 1.0) -> None:
    """Runs the tools and writes part "sanitizer" of a record.

    Args:
        out: the record.
        minutes: after which those still running are stopped.
    """
    # Memory from the driver itself, so that what lies beyond a tensor is nobody's.
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    help_text = subprocess.run(["compute-sanitizer", "--help"], capture_output=True, text=True).stdout
    only = OURS if OURS[0] in help_text else ()
    # Compiled before, without a tool that watches; and if this fails, no tool is to blame.
    if subprocess.run(SMALL).returncode:
        raise SystemExit("the kernels fail without compute-sanitizer too: what went wrong stands above")
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for tool in TOOLS:
            command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *only, *SMALL)
            log = (Path(folder) / tool).open("w+")
            running[tool] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env), log
        for tool, (process, log) in running.items():
            try:
                code = process.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                code = None
            log.seek(0)
            text = log.read()
            print(text[:20_000], f"{tool}: exit code {code}", flush=True)
            found[tool] = verdict(code, text)
            out.write_text(json.dumps({"sanitizer": found}, indent=1))
    bad = {tool: f["why"] for tool, f in found.items() if f["why"]}
    if bad:
        raise SystemExit("; ".join(f"{tool}: {why}" for tool, why in bad.items()))


def verdict(code: int | None, text: str) -> dict[str, Any]:
    """Exit code, passes that ended well, and why this is no clean result, or nothing."""
    passes = len(re.findall(r"^passed: ", text, re.MULTILINE))
    problem = PROBLEM.search(text)
    why = ""
    if code is None:
        why = "stopped: no time left"
    elif code or not CLEAN.search(text):
        why = problem[1] if problem else f"exit code {code}, no summary of 0 errors"
    return {"code": code, "passes": passes, "why": why}
