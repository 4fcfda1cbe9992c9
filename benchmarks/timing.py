"""What benchmarks time with: fusedlstm.timing, and a neighbour that keeps a core busy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fusedlstm.timing import Runner, interleave, once, summary

__all__ = ["Runner", "busy_process", "interleave", "once", "summary"]


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that takes as much of one core as it gets."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()
