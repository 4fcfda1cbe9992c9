"""Compiles the native engine in place, and says what the record's figures will depend on."""

from __future__ import annotations

import json
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


def main(out: Path) -> None:
    """Builds, then writes part "machine" of a record.

    Args:
        out: the record.
    """
    if subprocess.run([sys.executable, "-c", IN_PLACE], cwd=ROOT).returncode:
        raise SystemExit("the engine does not compile here: what went wrong stands above")
    from benchmarks import results

    machine = results.machine("cuda")
    out.write_text(json.dumps({"machine": machine}, indent=1))
    print(machine)
