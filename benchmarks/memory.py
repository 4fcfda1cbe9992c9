"""Peak memory of one pass: on a CPU in a process of its own, on a GPU as torch counts it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.contenders import Contender, Pass
from benchmarks.shapes import Row

RESET_PEAK = Path("/proc/self/clear_refs")
TIMEOUT_SECONDS = 300.0


def peak_bytes(row: Row, contender: Contender) -> int | None:
    """How far memory rises above data and weights during one pass; None where the system does not tell.

    Args:
        row: shape and mode.
        contender: whose pass.
    """
    if contender.device == "cuda":
        return _on_gpu(row, contender)
    if not RESET_PEAK.exists():
        return None
    # Forked from a process that has imported torch and run nothing: no thread pool to inherit, no 2 s import.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.memory"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(row, contender, sender))
    child.start()
    sender.close()
    try:
        if not receiver.poll(TIMEOUT_SECONDS):
            raise TimeoutError(
                f"peak memory of {contender.title} on {row.name} took over {TIMEOUT_SECONDS:.0f} s"
            )
        return int(receiver.recv())
    finally:
        child.kill()
        child.join()


def _on_gpu(row: Row, contender: Contender) -> int:
    with contender.context():
        measured = Pass(row, contender)
        measured()  # libraries take their own memory at the first call
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        measured()
        torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure(row: Row, contender: Contender, result: Connection) -> None:
    small = Pass(replace(row, H=8, I=8, B=2, T=2), contender)
    with contender.context():
        small()  # thread pools and libraries, which no pass pays for again
        measured = Pass(row, contender)
        del small
        gc.collect()
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)  # or the pass would reuse freed memory
        before = _status("VmRSS")
        RESET_PEAK.write_text("5")
        measured()
        result.send(_status("VmHWM") - before)


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, field
    return int(found[1]) * 1024
