"""`make gpu` where there is no GPU: what can be known before, and that no step can spoil another."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_on_cpu
import fusedlstm

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import (
    gpu,
    gpu_build,
    gpu_child,
    gpu_micro,
    gpu_record,
    gpu_report,
    gpu_sanitizer,
    gpu_small,
    gpu_steps,
    results,
)  # fmt: skip
from benchmarks.gpu import Run, allowance
from benchmarks.gpu_steps import STEPS, Asked, Step
from benchmarks.report import filled, newest
from benchmarks.results import load

FAKES = {
    "good": "out.write_text(json.dumps({'machine': {'commit': 'unknown'}, 'micro': {'x': {'us': 1.5}}}))",
    "crash": "print('before'); os.abort()",
    "raises": "out.write_text('{\"layer\": '); raise ValueError('in a word')",
    "unreadable": "out.write_text('[')",
    "odd": "out.write_text('[]')",
    "stuck": """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
out.write_text(json.dumps({'layer': {'row': {'pid': child.pid}}}))
time.sleep(600)""",
}


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Step]:
    """Steps that each do one thing, by name."""
    for name, body in FAKES.items():
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        head = "import json, os, signal, subprocess, sys, time\ndef main(out):\n"
        (tmp_path / f"fake_{name}.py").write_text(head + lines)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu_child, "GRACE_SECONDS", 0.5)
    return {name: Step(name, f"is {name}", f"fake_{name}", 1, 5, 60) for name in FAKES}


def run(steps: list[Step], folder: Path, seconds: float = 60.0) -> tuple[bool, dict[str, Any]]:
    passed = gpu.run(steps, Run(folder, time.monotonic() + seconds, commit="abc-dirty"), "")
    return passed, json.loads((folder / "gpu.json").read_text())


def test_without_a_gpu_every_step_fails_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "missing_gpu", lambda: "no GPU is here")
    assert gpu.main(["--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert list(record["steps"]) == [step.name for step in STEPS]
    for step in record["steps"].values():
        assert step["state"] == "failed" and step["reason"] == "no GPU is here" and step["what"]
    text = capsys.readouterr().out
    assert "Traceback" not in text
    table = text.splitlines()[-len(STEPS) :]
    assert [line.split()[0] for line in table] == [step.name for step in STEPS]
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_this_machine_has_none() -> None:
    # Where nvidia-smi is but no driver, the steps look for themselves.
    assert "no NVIDIA GPU" in gpu.missing_gpu() or shutil.which("nvidia-smi")


def test_dry_tells_what_each_step_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--out", str(tmp_path / "none")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(STEPS) and all(s.what in line for s, line in zip(STEPS, lines, strict=True))
    assert not (tmp_path / "none").exists()


def test_a_part_builds_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--only", "layer"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["build", "layer"]
    with pytest.raises(SystemExit):
        gpu.main(["--only", "nonsense"])
    assert "must be of info" in capsys.readouterr().err


def test_one_that_fails_spoils_no_other(
    fakes: dict[str, Step], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(asked: Asked) -> dict[str, Any]:
        raise OSError("no space left")

    mine = replace(fakes["good"], name="mine", arguments=broken)
    order = ["crash", "raises", "unreadable", "odd", "mine", "good"]
    passed, record = run([mine if name == "mine" else fakes[name] for name in order], tmp_path)
    steps = record["steps"]
    assert not passed and [steps[name]["state"] for name in order] == ["failed"] * 5 + ["passed"]
    assert "SIGABRT" in steps["crash"]["reason"]
    assert steps["raises"]["reason"] == "exit code 1: ValueError: in a word"
    assert "no JSON" in steps["unreadable"]["reason"] and "no record but a list" in steps["odd"]["reason"]
    assert "the runner: OSError" in steps["mine"]["reason"]
    assert record["micro"] == {"x": {"us": 1.5}}
    assert record["machine"] == {"commit": "abc", "dirty": True}
    assert {"before", "======== raises"} <= set((tmp_path / "gpu.log").read_text().splitlines())
    assert not list(tmp_path.glob("gpu.part*"))
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["good", "passed"]
    assert run([fakes["good"]], tmp_path)[0]


def test_a_stuck_step_is_killed_with_its_children_and_the_deadline_holds(
    fakes: dict[str, Step], tmp_path: Path
) -> None:
    stuck = replace(fakes["stuck"], expected=3, limit=3)
    passed, record = run([stuck, replace(fakes["good"], least=100)], tmp_path)
    steps = record["steps"]
    assert not passed and "its time was up" in steps["stuck"]["reason"]
    pid = record["layer"]["row"]["pid"]  # what it wrote is kept
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"
    assert steps["good"]["state"] == "not begun" and "it needs 100" in steps["good"]["reason"]


def test_figures_that_cannot_be_read_are_told(fakes: dict[str, Step], tmp_path: Path) -> None:
    step = replace(fakes["good"], part="micro", figures=lambda record: [record["absent"]])
    passed, record = run([step], tmp_path)
    assert passed and "cannot be read: KeyError" in record["steps"]["good"]["figures"][0]


def test_a_wrong_row_fails_the_layer_step_and_a_wrong_rival_does_not() -> None:
    rows = {
        "right": {"parity": {"ok": True, "wrong": {"haste": "wrong result: far off"}}},
        "further": {"parity": {"ok": True, "wrong": {"ours:cuda": "wrong result: off"}}},
        "wrong": {"parity": {"ok": False, "wrong": {}}},
        "failed": {"parity": {"ok": False, "why": "failed: MemoryError"}},
        "refused": {"skipped": {"ours": "too wide"}},
    }
    told = ["wrong: wrong result", "failed: failed: MemoryError", "further: ours:cuda wrong result: off"]
    assert gpu_steps._wrong_rows({"layer": rows}) == told


def test_time_is_kept_for_later_steps() -> None:
    first, second = (Step(name, "", "", 10, 50, limit) for name, limit in (("a", 1000), ("b", 60)))
    assert allowance(first, [second], 540) == 490
    assert allowance(second, [], 540) == 60
    assert allowance(first, [second] * 20, 540) == 50
    assert allowance(first, [second], 20) == 20


def test_the_steps_fit_and_their_calls_are_right() -> None:
    assert sum(step.expected for step in STEPS) < 60 * 9
    for step in STEPS:
        assert step.least <= step.expected <= step.limit
        signature = inspect.signature(importlib.import_module(step.module).main)
        signature.bind(out=Path("x"), **step.arguments(Asked(100.0, "gpu")))
        assert 0 < Asked(step.least, "gpu").minutes * 60 < step.least


def test_nothing_is_needed_that_the_machine_lacks() -> None:
    modules = [step.module for step in STEPS] + ["benchmarks.gpu_small"]
    blocked = "import sys; sys.modules |= dict.fromkeys({}); import {}"
    for absent, wanted in ((["tyro", "pooch"], modules), (["torch", "numpy", "triton"], ["benchmarks.gpu"])):
        code = blocked.format(absent, ", ".join(wanted))
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=gpu_child.ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_a_record_is_cut_in_its_texts_only(tmp_path: Path) -> None:
    record = {
        "micro": {str(k): {"us": k + 0.5} for k in range(100)},
        "log": "x" * 100_000,
        "l": ["y" * 9_000],
    }
    path = tmp_path / "gpu.json"
    gpu_record.write(path, record, most=10_000)
    written = json.loads(path.read_text())
    assert path.stat().st_size <= 10_001 and written["micro"] == record["micro"]
    assert written["log"].startswith("xxx") and "more]" in written["log"]
    gpu_record.write(path, record)
    assert json.loads(path.read_text()) == record


def test_a_log_keeps_its_ends(tmp_path: Path) -> None:
    log, logs = tmp_path / "log", tmp_path / "logs"
    log.write_text("first\n" + "x" * 100_000 + "\nlast\n")
    gpu_record.append_log(logs, "step", log, most=1000)
    text = logs.read_text()
    assert "first" in text and text.endswith("last\n") and "left out" in text and len(text) < 1200


def test_outcomes_of_tests_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip(reason='no card')\n"
        "def test_skipped(): pass\n"
    )
    (tmp_path / "test_other.py").write_text("import a_package_that_is_not_there\n")
    out = tmp_path / "part.json"
    command = gpu_child.call("benchmarks.gpu_tests", {"out": out, "folder": tmp_path})
    outcome = gpu_child.run(command, 100, tmp_path / "log")
    assert not outcome.passed and "1 tests failed" in outcome.reason
    tests = json.loads(out.read_text())["tests"]
    assert tests["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert "1 == 2" in next(iter(tests["failures"].values())) and "no card" in next(iter(tests["skipped"]))
    assert gpu_steps._tests({"tests": tests})[0] == "1 passed, 1 failed, 1 skipped"
    assert gpu_steps._only_skipped({"tests": {"counts": {"skipped": 3}}})
    (tmp_path / "test_marked.py").unlink()
    outcome = gpu_child.run(command, 100, tmp_path / "log")
    assert outcome.passed and "is marked gpu" in (tmp_path / "log").read_text()


def test_micro_benchmarks_that_fail_or_hang_are_told() -> None:
    good = '{"name": "x", "us": 1}'
    figures, why = gpu_micro.run(("sh", "-c", f"echo '{good}'; echo noise; sleep 60"), 1.0)
    assert figures == [json.loads(good)] and "stopped" in why
    assert gpu_micro.run(("sh", "-c", "echo no library >&2; exit 3"), 9.0) == ([], "no library")
    bad = '{"name": "x", "error": "refused"}'
    assert gpu_micro.run(("sh", "-c", f"echo '{bad}'; exit 1"), 9.0) == ([json.loads(bad)], "")


@pytest.mark.parametrize(
    ("code", "text", "why"),
    [
        (0, "passed: triton tile (4, 17)\n========= ERROR SUMMARY: 0 errors\n", ""),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", ""),
        (
            9,
            "========= COMPUTE-SANITIZER\n========= Error: Race reported between\n",
            "Error: Race reported between",
        ),
        (
            9,
            "========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors\n",
            "Invalid __global__ read",
        ),
        (0, "nothing\n", "exit code 0, no summary of 0 errors"),
        (None, "", "stopped: no time left"),
    ],
)
def test_what_the_sanitizer_says(code: int | None, text: str, why: str) -> None:
    found = gpu_sanitizer.verdict(code, text)
    assert found["why"] == why and found["passes"] == ("passed" in text)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: they would run")
def test_micro_benchmarks_compile_and_measure_what_the_model_asks(tmp_path: Path) -> None:
    names = {f"triton_barrier_{n}" for n in (16, 32, 64, 128, "full")}
    for source in gpu_micro.SOURCES:
        program = tmp_path / source.stem
        command = [
            *gpu_micro.NVCC,
            "-gencode=arch=compute_90a,code=sm_90a",
            "-Xptxas=-v,-warn-spills,-Werror",
        ]
        done = subprocess.run([*command, source, "-o", program], capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        figures, why = gpu_micro.run((str(program),), 20.0)
        assert figures and not why and all("cuda" in figure["error"].lower() for figure in figures)
        names |= {figure["name"] for figure in figures}
    assert {term.figure for term in (*gpu_steps.TERMS, *gpu_report.triton_terms())} <= names
    for form in gpu_report.BARRIERS.values():
        assert {form.format(blocks) for blocks in gpu_report.BLOCKS} & names
    for form in gpu_report.GATHERS.values():
        assert {form.format(way, 16) for way in gpu_report.DSMEM} & names


def test_the_triton_barrier_compiles() -> None:
    pytest.importorskip("triton")
    program = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from benchmarks.micro.triton_barrier import barrier_kernel
types = {"barrier_ptr": "*i32", "data_ptr": "*i32", "wrong_ptr": "*i32", "rounds": "i32"}
for checked in (True, False):
    constants = {"MOST": 256, "CHECKED": checked}
    source = ASTSource(barrier_kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert "gpu.release" in made.asm["ptx"] and "gpu.acquire" in made.asm["ptx"]
"""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=gpu_child.ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels are not interpreted")
def test_what_the_sanitizer_watches_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    import triton_on_cpu  # noqa: F401, since it mends the interpreter
    from fusedlstm.backends import triton
    from fusedlstm.backends.triton.plans import Card

    monkeypatch.setattr(triton, "DEVICES", {"cpu"})
    monkeypatch.setattr(triton, "_card", lambda device: Card(132, 227 << 10))
    monkeypatch.setattr(fusedlstm, "backends", lambda: {"cpu": None, "triton": None, "absent": "no"})
    ran, forward = set(), triton.layer.forward
    monkeypatch.setattr(triton.layer, "forward", lambda plan, *a: ran.add(plan.regime) or forward(plan, *a))
    watched("triton", ran, capsys)
    monkeypatch.setattr(fusedlstm, "backends", lambda: {"cpu": None})
    with pytest.raises(SystemExit, match="no backend of ours"):
        gpu_small.main()


def watched(backend: str, ran: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every shape was run in every regime of the backend, which `ran` saw, and the sanitizer counts them."""
    gpu_small.main("cpu")
    lines = capsys.readouterr().out.splitlines()
    regimes = gpu_small.REGIMES[backend]
    assert len(lines) == len(gpu_small.SHAPES) * len(regimes) and ran == set(regimes)
    assert gpu_sanitizer.verdict(0, "\n".join(lines))["passes"] == len(lines)


def test_what_the_sanitizer_watches_of_cuda_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if reason := cuda_on_cpu.missing():
        pytest.skip(reason)
    cuda = cuda_on_cpu.install(monkeypatch, cuda_on_cpu.build_module())
    fusedlstm.functional._resolve_cached.cache_clear()
    monkeypatch.setattr(fusedlstm, "backends", lambda: {"cpu": None, "cuda": None, "absent": "no"})
    ran, forward = set(), cuda._forward

    def recorded(call: Any) -> None:
        steps = call.steps
        plans = cuda.plans(True, steps.B, steps.H, steps.D, call.h0.dtype, call.h0.device)
        ran.add(plans[0].kernel.regime)
        forward(call)

    monkeypatch.setattr(cuda, "_forward", recorded)
    watched("cuda", ran, capsys)
    fusedlstm.functional._resolve_cached.cache_clear()


@pytest.mark.parametrize(
    ("works", "why"), [("ON", ""), ("OFF", "CUDA kernels do not"), ("", "engine does not")]
)
def test_without_kernels_the_rest_is_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works: str, why: str
) -> None:
    asked = []

    def build(command: list[str], env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append((env["FUSEDLSTM_CUDA"], env.get("FUSEDLSTM_CUDA_ARCHITECTURES")))
        return subprocess.CompletedProcess(command, env["FUSEDLSTM_CUDA"] != works)

    monkeypatch.delenv("FUSEDLSTM_CUDA_ARCHITECTURES", raising=False)
    monkeypatch.setattr(gpu_build.subprocess, "run", build)
    monkeypatch.setattr(results, "machine", lambda device: {"device": device})
    with pytest.raises(SystemExit, match=why) if why else nullcontext():
        gpu_build.main(tmp_path / "part")
    assert asked == [("ON", "native"), ("OFF", None)][: 1 + (works != "ON")]
    assert (tmp_path / "part").exists() == bool(works)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels are not interpreted")
@pytest.mark.parametrize("seed", [1, 2])
def test_the_triton_barrier_checks_itself(seed: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    from benchmarks.micro.triton_barrier import barrier_kernel
    from triton_on_cpu import seeded

    barrier, data, wrong = (torch.zeros(n, dtype=torch.int32) for n in (1, 16, 5))
    wrong.fill_(1)
    with seeded(seed):
        barrier_kernel[(5,)](barrier, data, wrong, 6, MOST=8, CHECKED=True, launch_cooperative_grid=True)
    assert not wrong.any() and barrier.item() == 30 and set(data.tolist()) == {0, 5, 6}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the kernels are not interpreted")
def test_both_ways_of_ids_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    import triton_on_cpu  # noqa: F401, since it mends the interpreter
    from benchmarks.micro import triton_ids
    from fusedlstm.backends import triton
    from fusedlstm.backends.triton.plans import Card

    monkeypatch.setattr(triton, "_card", lambda device: Card(132, 227 << 10))
    runs = triton_ids.ways(3, 5, 7, 16, torch.bfloat16, "cpu")
    found = {name: run() for name, run in runs.items()}
    for one, other in zip(found["kernel"], found["gathered"], strict=True):
        assert one.abs().sum() > 0 and torch.equal(one, other)


def test_the_page_is_what_the_records_say(tmp_path: Path) -> None:
    page = gpu_report.PAGE.read_text()
    measured = [record for record in map(load, newest()) if record.get("micro")]
    assert page == filled(page, gpu_report.model(measured[-1] if measured else None))


def test_measured_terms_stand_beside_predicted_ones() -> None:
    record = load(newest()[0])
    nothing = gpu_report.model(None)
    assert nothing.count("not measured") >= len(gpu_steps.TERMS) and "A barrier" not in nothing
    micro = {
        "l2_load": {"us": 0.1834},
        "cluster_barrier_16": {"us": 0.456},
        "dsmem_hop_bulk_8": {"us": 0.789},
    }
    text = gpu_report.model(record | {"micro": micro})
    assert "| 0.15 to 0.24 | 0.183 |" in text and "0.456" in text and "0.789" in text
    lines = gpu_steps._barriers({"micro": micro, "micro_failed": {"l2_read_32k": "refused"}})
    assert "l2_load: 0.183, predicted 0.15 to 0.24 µs" in lines and "l2_read_32k: refused" in lines
