"""The record of a run: one JSON file per device and commit, to which each benchmark adds its part."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fusedlstm
from fusedlstm import _C

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SOURCES = ("fusedlstm", "csrc", "CMakeLists.txt", "benchmarks/*.py")

Record = dict[str, Any]


def machine(device: str = "cpu") -> Record:
    """What the figures depend on.

    Args:
        device: "cpu" or "cuda".

    Raises:
        SystemExit: there is no such device here.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("device is cuda, but torch finds no GPU here: give --device cpu")
    commit = _git("rev-parse", "--short=12", "HEAD")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _device(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "engine": _C.engine(),
        "binary": hashlib.sha256(Path(_C.__file__).read_bytes()).hexdigest()[:12],
        "fusedlstm": fusedlstm.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **(_gpu() if device == "cuda" else {}),
        "commit": commit or "unknown",
        "dirty": commit is None or bool(_git("status", "--porcelain", "--", *SOURCES)),
    }


def path_for(found: Record) -> Path:
    """Where the record of this machine and commit is kept; CPUs of one name differ by their instructions."""
    engine = "" if "cuda" in found else found["engine"]
    slug = re.sub(r"[^a-z0-9]+", "-", f"{found['device']} {found['cores']} cores {engine}".lower()).strip("-")
    return RESULTS / slug / f"{found['commit']}.json"


def load(path: Path) -> Record:
    """Reads a record."""
    record: Record = json.loads(path.read_text())
    return record


def check(path: Path, found: Record) -> None:
    """Ends the program if the record was begun on another machine or build than the one found."""
    if path.exists():
        begun = load(path)["machine"]
        differ = sorted(key for key in found if found[key] != begun.get(key))
        if differ:
            raise SystemExit(f"{path} has another {', '.join(differ)}: remove it, or give another --out")


def add(path: Path, found: Record, part: str, name: str, values: Record) -> None:
    """Writes one measurement into the record, in place of an older one of that name; others stay.

    Args:
        path: of the record; it need not exist.
        found: the machine, as machine() says.
        part: "layer", "busy" or "train".
        name: of the measurement.
        values: of the measurement.
    """
    record = load(path) if path.exists() else {"machine": found}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record.setdefault(part, {})[name] = {"date": date, **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def nvidia_smi(asked: str) -> list[str]:
    """What the first GPU says of the fields that are asked for; nothing where nvidia-smi is not to be had."""
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        return [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    except (OSError, IndexError, subprocess.SubprocessError):
        return []


def _gpu() -> Record:
    """Versions of what a GPU's figures depend on, and its highest clocks in MHz where nvidia-smi tells."""
    driver, *clocks = nvidia_smi("driver_version,clocks.max.sm,clocks.max.mem") or [None]
    return {
        "driver": driver,
        "clocks_mhz": clocks,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": importlib.metadata.version("triton"),
    }


def _device() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # a tree without git: "unknown"
        return None
    return done.stdout.strip()
