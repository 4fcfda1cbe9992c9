"""What a machine with a GPU is: driver, compiler, libraries and the device's own properties."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path

QUERY = (
    "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,"
    "temperature.gpu,mig.mode.current,persistence_mode,compute_mode"
)
COMMANDS = {
    "nvidia_smi": ("nvidia-smi",),
    "query": ("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv"),
    "nvcc": ("nvcc", "--version"),
    "compiler": ("c++", "--version"),
    "cmake": ("cmake", "--version"),
    "compute_sanitizer": ("compute-sanitizer", "--version"),
}
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pytest",
    "pytest-xdist",
    "pytest-timeout",
    "setuptools",
    "pybind11",
    "ninja",
)


def main(out: Path) -> None:
    """Writes what it finds as part "info" of a record; what is missing is a reason in its place.

    Args:
        out: the record.
    """
    found: dict[str, object] = {name: _said(command) for name, command in COMMANDS.items()}
    found["python"] = platform.python_version()
    found["packages"] = {name: _version(name) for name in PACKAGES}
    out.write_text(json.dumps({"info": found}))  # before torch is touched
    found["device"] = _device()
    out.write_text(json.dumps({"info": found}, indent=1))
    for name, value in found.items():
        print(f"{name}: {value}")


def _said(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not on the PATH"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> dict[str, object]:
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU")
    properties = torch.cuda.get_device_properties(0)
    names = [name for name in dir(properties) if not name.startswith("_")]
    return {
        "properties": {name: str(getattr(properties, name)) for name in names},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "allow_tf32": torch.backends.cudnn.allow_tf32,
        "checks": str(float(torch.ones(1000, device="cuda").sum())),  # the GPU computes
    }
