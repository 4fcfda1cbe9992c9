"""What `make gpu` does, in order of priority: each step, its time, and what the last table says of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_model import TERMS

Record = dict[str, Any]
CLOSING_SECONDS = 25.0  # a step that looks at the clock itself is told to end so much earlier


@dataclass(frozen=True)
class Asked:
    """What a step is asked for: how long it may take, and which rows of the layer."""

    seconds: float
    shapes: str

    @property
    def minutes(self) -> float:
        return max(self.seconds - CLOSING_SECONDS, 0.5 * self.seconds) / 60


@dataclass(frozen=True)
class Step:
    """One step, a module whose main(out=..., ...) adds a part to the record that `out` names.

    Args:
        name: of the step.
        what: it does, in words.
        module: whose main it calls.
        least: seconds that must be left, or it is not begun.
        expected: seconds that are kept for it while earlier steps run.
        limit: seconds after which it is stopped even if more are left.
        arguments: for main, beside out.
        needs: programs that must be on the PATH.
        figures: of a record, for the last table.
        wrong: of a record: what makes the step a failure though its process ended well.
        part: of the record that it adds, if that is not its name.
    """

    name: str
    what: str
    module: str
    least: float
    expected: float
    limit: float
    arguments: Callable[[Asked], Mapping[str, Any]] = lambda asked: {}
    needs: tuple[str, ...] = ()
    figures: Callable[[Record], list[str]] = lambda record: []
    wrong: Callable[[Record], list[str]] = lambda record: []
    part: str = ""


def _minutes(asked: Asked) -> Mapping[str, Any]:
    return {"minutes": asked.minutes}


def _on_gpu(asked: Asked) -> Mapping[str, Any]:
    return {"device": "cuda"}


def _timed(asked: Asked) -> Mapping[str, Any]:
    return {"device": "cuda", "minutes": asked.minutes}


def _rows(asked: Asked) -> Mapping[str, Any]:
    return {"device": "cuda", "minutes": asked.minutes, "rows": asked.shapes}


def _info(record: Record) -> list[str]:
    info = record["info"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items() if version)
    return [info["query"].splitlines()[-1], packages]


def _tests(record: Record) -> list[str]:
    tests = record["tests"]
    counts = ", ".join(f"{n} {outcome}" for outcome, n in tests["counts"].items()) or "no test is marked gpu"
    failures = [f"{name}: {text.strip().splitlines()[-1][:150]}" for name, text in tests["failures"].items()]
    return [counts, *(f"skipped: {why}"[:150] for why in [*tests["skipped"]][:2]), *failures[:5]]


def _only_skipped(record: Record) -> list[str]:
    return ["every test was skipped"] if [*record["tests"]["counts"]] == ["skipped"] else []


def _barriers(record: Record) -> list[str]:
    micro = record["micro"]
    lines = []
    for term in TERMS:
        value = micro.get(term.figure, {}).get(term.field)
        shown = "not measured" if value is None else f"{value:.3g}"
        lines.append(f"{term.figure}: {shown}, predicted {term.predicted} {term.unit}")
    for start in ("cluster_barrier", "grid_barrier", "triton_barrier", "triton_ids"):
        found = [
            f"{n[len(start) + 1 :]} {f['us']:.2f}"
            for n, f in micro.items()
            if n.startswith(start) and "us" in f
        ]
        lines.append(f"{start} µs: {', '.join(found)}")
    return [*lines, *(f"{name}: {why}"[:150] for name, why in [*record["micro_failed"].items()][:5])]


def _layer(record: Record) -> list[str]:
    rows = record["layer"]
    shown = [f"{name} {row['ratio']:.2f}" for name, row in rows.items() if "ratio" in row]
    return [f"{len(rows)} rows, {len(shown)} timed; times cuDNN: {', '.join(shown[:16])}"]


def _wrong_rows(record: Record) -> list[str]:
    parities = {name: row["parity"] for name, row in record["layer"].items() if "parity" in row}
    wrong = [f"{name}: {p.get('why', 'wrong result')}" for name, p in parities.items() if not p["ok"]]
    further = [
        f"{name}: {who} {why}"
        for name, p in parities.items()
        for who, why in p.get("wrong", {}).items()
        if who.startswith("ours")
    ]
    return wrong + further


def _sanitizer(record: Record) -> list[str]:
    return [f"{tool}: {f['why'] or 'clean'}, {f['passes']} passes" for tool, f in record["sanitizer"].items()]


def _train(record: Record) -> list[str]:
    return [
        f"{net}: {', '.join(f'{k} {v:.2f}' for k, v in f.get('ratio', {}).items())}"
        for net, f in record["train"].items()
    ]


def _sample(record: Record) -> list[str]:
    return [
        f"{net}: {', '.join(f'{k} {v:,.0f}' for k, v in f.get('chars_per_s', {}).items())} chars/s"
        for net, f in record["sample"].items()
    ]


def _scaling(record: Record) -> list[str]:
    return [f"{axis}: {len(found['values'])} values" for axis, found in record["scaling"].items()]


STEPS = (
    Step("info", "asks nvidia-smi, nvcc, torch and triton what this machine is",
         "benchmarks.gpu_info", 1, 15, 60, figures=_info),
    Step("build", "compiles the engine and the kernels in place, and notes what the figures depend on",
         "benchmarks.gpu_build", 10, 90, 180, needs=("cmake", "ninja")),
    Step("tests", "runs the tests that are marked gpu",
         "benchmarks.gpu_tests", 30, 90, 180, figures=_tests, wrong=_only_skipped),
    Step("barriers", "compiles benchmarks/micro with nvcc and times barriers, hops, L2, mma and launches",
         "benchmarks.gpu_micro", 20, 60, 120, _minutes, ("nvcc", "nvidia-smi"), _barriers, part="micro"),
    Step("layer", "times the layer against cuDNN and others, row by row, parity first",
         "benchmarks.bench_layer", 30, 120, 600, _rows, (), _layer, _wrong_rows),
    Step("sanitizer", "runs compute-sanitizer's memcheck, racecheck and synccheck over every kernel",
         "benchmarks.gpu_sanitizer", 40, 60, 120, _minutes, ("compute-sanitizer",), _sanitizer),
    Step("train", "times training steps of the char-LM",
         "benchmarks.bench_train", 20, 35, 80, _on_gpu, figures=_train),
    Step("sample", "times the sampler",
         "benchmarks.bench_sample", 15, 25, 60, _on_gpu, figures=_sample),
    Step("scaling", "times the layer against T, B, H and L",
         "benchmarks.scaling", 40, 40, 600, _timed, figures=_scaling),
)  # fmt: skip
