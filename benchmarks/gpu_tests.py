"""Runs the tests that need a GPU, and records every outcome as soon as it is there."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

# Compiling the kernels takes most of the time, and is what many processes do at once.
IN_PARALLEL = {"xdist": ("-n", str(min(os.cpu_count() or 1, 14))),
               "pytest_timeout": ("--timeout=100", "--timeout-method=thread")}  # fmt: skip
SLOWEST = 10
TESTS = Path(__file__).resolve().parent.parent / "tests"


class Recorder:
    """A plugin of pytest that writes part "tests" of a record after each test."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.skips: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failures[report.nodeid] = report.longreprtext[-4000:]
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self.skips[str(why)] += 1
        self.write()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            self.failures[report.nodeid] = report.longreprtext[-4000:]
            self.write()

    def write(self) -> None:
        slowest = sorted(self.seconds.items(), key=lambda item: -item[1])[:SLOWEST]
        found = {"counts": dict(self.counts), "failures": self.failures, "skipped": dict(self.skips),
                 "slowest_seconds": dict(slowest)}  # fmt: skip
        partial = self.out.with_suffix(".writing")
        partial.write_text(json.dumps({"tests": found}, indent=1))
        partial.replace(self.out)


def marked(folder: Path) -> list[str]:
    """The files that have tests for a GPU; others may need packages that are not there."""
    return [str(path) for path in sorted(folder.glob("test_*.py")) if "mark.gpu" in path.read_text()]


def main(out: Path, folder: Path = TESTS) -> None:
    """Runs pytest; that no test is marked counts as passing.

    Args:
        out: the record.
        folder: with the tests.
    """
    # cuBLAS keeps its sums in order only with this workspace, and torch refuses deterministic sums without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    recorder, began = Recorder(out), time.monotonic()
    recorder.write()
    files = marked(folder)
    if not files:
        print(f"no test in {folder} is marked gpu")
        return
    plugins = [option for name, o in IN_PARALLEL.items() if importlib.util.find_spec(name) for option in o]
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors", *plugins]
    code = pytest.main([*options, *files], plugins=[recorder])
    print(f"{dict(recorder.counts)} in {time.monotonic() - began:.0f} s")
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"{recorder.counts['failed']} tests failed ({code!r})")
