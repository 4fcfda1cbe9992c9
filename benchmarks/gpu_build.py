"""Compiles the engine and the CUDA kernels in place, and says what the record's figures will depend on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# As `python setup.py build_ext --inplace`, but without pyproject.toml: of its metadata a build in place needs
# nothing, and they want a newer setuptools than a bare machine may have.
IN_PLACE = """
import runpy, sys
from setuptools import Distribution
Distribution.parse_config_files = lambda *args, **kwargs: None
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


# Options of CMake. Should the kernels not compile, all that needs no kernel shall run nevertheless.
WITH_KERNELS = {"FUSEDLSTM_CUDA": "ON", "FUSEDLSTM_CUDA_ARCHITECTURES": "native"}
WITHOUT = {"FUSEDLSTM_CUDA": "OFF"}


def main(out: Path) -> None:
    """Builds, then writes part "machine" of a record.

    Args:
        out: the record.
    """
    kernels = _build(WITH_KERNELS)
    if not kernels and not _build(WITHOUT):
        raise SystemExit("the engine does not compile here: what went wrong stands above")
    from benchmarks import results

    machine = results.machine("cuda")
    out.write_text(json.dumps({"machine": machine}, indent=1))
    print(machine)
    if not kernels:
        raise SystemExit("the CUDA kernels do not compile here: what went wrong stands above")


def _build(options: dict[str, str]) -> bool:
    command = [sys.executable, "-c", IN_PLACE]
    return subprocess.run(command, cwd=ROOT, env=os.environ | options).returncode == 0
