"""What nvcc makes of the CUDA kernels, and which of them are planned: registers, spills, predicted times.

It needs nvcc and a host compiler, and no GPU. `python -m benchmarks.cuda_aot` writes results/cuda_aot.json
and docs/cuda_kernels.md.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

from benchmarks.results import RESULTS, ROOT
from benchmarks.tables import DASH, markdown

CSRC = ROOT / "csrc"
RECORD = RESULTS / "cuda_aot.json"
PAGE = ROOT / "docs" / "cuda_kernels.md"
FLAGS = (
    "-std=c++20", "-O3", "-Xptxas", "-v", "-Werror", "all-warnings", "-Xcompiler",
    "-fPIC,-fvisibility=hidden",
)  # fmt: skip
# An A100, an H100, a B200 and an RTX 5090, each as Card of the planner.
CARDS = {
    "sm_80": (108, 163 << 10, (8, 0)),
    "sm_90": (132, 227 << 10, (9, 0)),
    "sm_100": (148, 227 << 10, (10, 0)),
    "sm_120": (170, 99 << 10, (12, 0)),
}
CLEAN = "sm_80", "sm_90", "sm_100"  # where nothing may spill
PREDICTED = "sm_90"  # the model's constants are an H100's
NOT_MEASURED = "not measured"
SHAPES = [
    (64, 64), (128, 16), (256, 64), (512, 16), (512, 100), (512, 128), (768, 16), (1024, 16), (1024, 64),
    (2048, 64),
]  # fmt: skip  # H, B
PRECISIONS = "bfloat16", "tf32", "tf32x3"  # float16 is planned as bfloat16
PASSES = "forward", "backward"
# Models that write: L, H, V, B.
WRITERS = [
    (1, 128, 65, 1), (2, 128, 65, 1), (2, 512, 65, 1), (2, 512, 65, 8), (2, 512, 256, 1), (3, 512, 96, 1),
    (2, 1024, 65, 1), (3, 1024, 256, 1), (4, 1024, 256, 8),
]  # fmt: skip
# The class of csrc/cuda/precision.cuh and what Python calls it.
PRECISION_OF = {"Fp32": "float32", "Bf16": "bfloat16", "Fp16": "float16", "Tf32": "tf32", "Tf32x3": "tf32x3"}
NUMBERS = {"forward": ("kept", "splits", "threads"), "backward": ("kept", "k_steps", "splits", "threads")}
# Template arguments of a kernel in its mangled name: precision, exchange, numbers.
NAME = re.compile(r"(forward|backward)_kernelINS0_\d+(\w+?)ENS0_\d+(Block|Cluster|Grid)\w+?E((?:Li\d+E)+)")
WRITER = re.compile(r"generate_kernelINS0_\d+(\w+?)ELi(\d+)ELi(\d+)E")  # precision, streams, threads
USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack_bytes>\d+) bytes stack frame, (?P<spill_store_bytes>\d+) bytes spill stores, "
    r"(?P<spill_load_bytes>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:, used (?P<barriers>\d+) barriers)?"
    r"(?:[^\n]*?, (?P<shared_bytes>\d+) bytes smem)?",
    re.DOTALL,
)
INSTRUCTIONS = {"mma": r"\bHMMA\b", "local": r"\b(?:LDL|STL)\b"}
# Columns of the tables: what tells kernels apart, what the compiler says of them, what a step takes.
KERNEL = {
    "pass": "pass", "regime": "kernel", "precision": "product", "kept": "kept", "k_steps": "K steps",
    "splits": "splits", "threads": "threads",
}  # fmt: skip
FIGURES = {
    "registers": "registers", "spill_store_bytes": "spill stores", "spill_load_bytes": "spill loads",
    "stack_bytes": "stack", "barriers": "barriers", "shared_bytes": "static shared", "mma": "HMMA",
    "local": "local",
}  # fmt: skip
TERMS = {
    "product_us": "product", "shared_memory_us": "its operands", "sums_us": "sums", "cells_us": "cells",
    "meet_us": "meeting", "l2_us": "L2",
}  # fmt: skip
WRITER_TERMS = {
    "own_us": "own h", "meet_us": "a round", "other_us": "other products", "sums_us": "sums",
    "cells_us": "cells", "draw_us": "draw", "l2_us": "L2",
}  # fmt: skip
DOCUMENT = """# What the CUDA kernels compile to

Written by `python -m benchmarks.cuda_aot` with nvcc {nvcc}; no GPU is needed, and none was used.
`tests/test_cuda_aot.py` holds them to this: on {clean} nothing spills, a block has its registers,
products are made by matrix instructions, and plans fit in shared memory.

## Kernels

The kernels of `csrc/cuda/persistent_*.cu` on {gpus}: one figure where these agree, and a dash where a
kernel is empty, since clusters came with sm_90. What is kept of W_hh in a warp's registers: forward steps
along K, backward matrix tiles of so many steps along K. Splits are warps that share 8 hidden units.
Registers are those of a thread, spills and stack are bytes of it, static shared memory is bytes of a block.
HMMA and local are instructions: of matrix products, and of loads from and stores to the stack.

{kernels}

## Plans, and what the model predicts

What `fusedlstm/backends/cuda/plans.py` chooses for one layer of H hidden units and B sequences on an H100,
in one direction; float16 is planned as bfloat16. The terms are of a step of 16 sequences, in µs: it takes
the larger of the product and of its operands, which come from shared memory meanwhile, and the others after
it. All sequences take so many rounds of that. The product of the inputs is no part of it.

{plans}

## Plans for other cards

An A100, a B200 and an RTX 5090 by their multiprocessors and shared memory. Forward / backward: the kernel,
its blocks and the hidden units of each, and a block's shared memory in KiB.

{others}

## Kernels that write text, and what their model predicts

The kernels of `csrc/cuda/generate.cu` on {gpus}, for so many streams at most: plain
multiply-adds, no matrix instruction.

{writers}

What `fusedlstm/backends/cuda/generate.py` chooses on an H100. Kept is the share of the weights that lies in
shared memory. The terms are in µs: a layer takes the larger of the product with its own h and of a round of
the grid, the decoder takes another round, and the others follow. The draw is predicted with all filters;
characters a second are those of all B streams together.

{texts}
"""

Row = dict[str, Any]


def compiler() -> Path | None:
    """nvcc on the PATH, under CUDA_HOME, or from pip's nvidia-cuda-nvcc; None where there is none."""
    homes = [os.environ.get("CUDA_HOME", "/usr/local/cuda"), *(f"{site}/nvidia/cu13" for site in sys.path)]
    folders = os.pathsep.join(f"{home}/bin" for home in homes)
    found = shutil.which("nvcc") or shutil.which("nvcc", path=folders)
    return Path(found) if found else None


def missing() -> str | None:
    """Why nothing can be compiled here, None where it can."""
    if compiler() is None:
        return (
            "no nvcc: put it on the PATH, set CUDA_HOME, or "
            "pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl"
        )
    return None


def version(nvcc: Path) -> str:
    """As 13.0.88."""
    return re.findall(r"\bV(\d+\.\d+\.\d+)", _run([nvcc, "--version"]))[0]


def compiled(nvcc: Path, source: Path, gpu: str, target: Path) -> str:
    """Compiles one file for one GPU, warnings being errors, and returns what the assembler says of it.

    Raises:
        RuntimeError: with the compiler's words, where it refuses.
    """
    return _run([nvcc, *FLAGS, *_architecture(gpu), "-c", source, "-o", target])


def usage(said: str) -> dict[str, Row]:
    """What the assembler says of each kernel, by mangled name."""
    found = {}
    for match in USAGE.finditer(said):
        figures = match.groupdict(default="0")
        name = figures.pop("name")
        found[name] = {what: int(figure) for what, figure in figures.items()}
    return found


def instructions(target: Path) -> dict[str, Row]:
    """How often each of INSTRUCTIONS stands in each kernel of an object; empty without a disassembler."""
    if (tool := disassembler()) is None:
        return {}
    _, *parts = re.split(r"Function : (\w+)", _run([tool, "-sass", target]))
    return {
        name: {what: len(re.findall(pattern, code)) for what, pattern in INSTRUCTIONS.items()}
        for name, code in zip(parts[::2], parts[1::2], strict=True)
    }


def disassembler() -> Path | None:
    """cuobjdump on the PATH, or the one that triton brings."""
    spec = importlib.util.find_spec("triton")
    brought = [f"{folder}/backends/nvidia/bin" for folder in (spec and spec.submodule_search_locations) or ()]
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(brought))
    return Path(found) if found else None


def described(name: str) -> Row | None:
    """A kernel's template arguments, from its mangled name; None for what is no kernel of ours."""
    if match := WRITER.search(name):
        precision, streams, threads = match.groups()
        numbers = {"streams": int(streams), "threads": int(threads)}
        return {"pass": "generate", "precision": PRECISION_OF[precision], **numbers}
    if (match := NAME.search(name)) is None:
        return None
    way, precision, regime, numbers = match.groups()
    values = map(int, re.findall(r"\d+", numbers))
    named = {"k_steps": 0, **dict(zip(NUMBERS[way], values, strict=True))}
    return {"pass": way, "regime": regime.lower(), "precision": PRECISION_OF[precision], **named}


def kernels(nvcc: Path, gpu: str, folder: Path) -> list[Row]:
    """Compiles all of csrc/cuda into a folder, and tells of each kernel what came out."""
    sources = sorted((CSRC / "cuda").glob("*.cu"), reverse=True)  # the short ones last
    targets = [folder / f"{source.stem}.o" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        said = list(
            pool.map(lambda pair: compiled(nvcc, pair[0], gpu, pair[1]), zip(sources, targets, strict=True))
        )
    counts = {name: row for target in targets for name, row in instructions(target).items()}
    rows = []
    for name, figures in usage("".join(said)).items():
        kernel = described(name)
        if kernel is None:
            raise ValueError(
                f"{name} is no name of a kernel as csrc/cuda has them: NAME does not fit any more"
            )
        if kernel.get("regime") != "cluster" or CARDS[gpu][2] >= (9, 0):
            rows.append({"gpu": gpu, **kernel, **figures, **counts.get(name, {})})
    return sorted(rows, key=_order)


def module(nvcc: Path, gpu: str, folder: Path) -> ModuleType:
    """fusedlstm._cuda by another name, from the objects of a folder; it tells of kernels without a GPU."""
    name = "_cuda_aot"
    target = folder / f"{name}.so"
    includes = [f"-I{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
    _run([
        nvcc, *FLAGS, *_architecture(gpu), f"-DFUSEDLSTM_CUDA_MODULE={name}", *includes, "-shared",
        CSRC / "cuda" / "bindings.cpp", *sorted(folder.glob("*.o")), "-o", target,
    ])  # fmt: skip
    spec = importlib.util.spec_from_file_location(name, target)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def plans(cuda: ModuleType) -> Iterator[Row]:
    """What is planned for each shape on each card, in all precisions and both passes; None: nothing fits."""
    sys.modules.setdefault("fusedlstm._cuda", cuda)  # which the backend imports, and need not be built here
    from fusedlstm.backends.cuda.plans import Card, Kernel, backward_plans, forward_plans

    make = {
        "forward": (forward_plans, cuda.forward_kernels(), cuda.forward_shared_bytes),
        "backward": (backward_plans, cuda.backward_kernels(), cuda.backward_shared_bytes),
    }
    for (gpu, card), (H, B), precision, way in itertools.product(CARDS.items(), SHAPES, PRECISIONS, PASSES):
        choose, table, shared_bytes = make[way]
        known = [Kernel(number, *fields) for number, fields in enumerate(table)]
        found = choose(B, H, 1, precision, Card(*card), known, shared_bytes)
        case = {"gpu": gpu, "H": H, "B": B, "precision": precision, "pass": way}
        yield {**case, "plan": _told(found[0]) if found else None}


def texts(cuda: ModuleType) -> Iterator[Row]:
    """What is planned for each of WRITERS on the card of the model; None: nothing fits."""
    sys.modules.setdefault("fusedlstm._cuda", cuda)
    from fusedlstm.backends.cuda import generate
    from fusedlstm.backends.cuda.plans import Card

    known = [generate.Kernel(number, *fields) for number, fields in enumerate(cuda.generate_kernels())]
    for sizes, precision in itertools.product(WRITERS, generate.DTYPES):
        L, H, V, B = sizes
        found = generate.plans(
            generate.Sizes(L, H, V, B), precision, Card(*CARDS[PREDICTED]), known, cuda.generate_shared_bytes
        )
        case = {"L": L, "H": H, "V": V, "B": B, "precision": precision}
        plan = (
            {**dataclasses.asdict(found[0]), "character_us": found[0].terms.character_us} if found else None
        )
        yield {**case, "plan": plan}


def report(gpus: Collection[str] = tuple(CARDS)) -> Row:
    """The record: nvcc's version, kernels as compiled for some GPUs, plans for all; so of what writes."""
    nvcc = compiler()
    if nvcc is None:
        raise SystemExit(missing())
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for gpu in gpus:  # each in place of the objects of the one before
            rows += kernels(nvcc, gpu, Path(folder))
        cuda = module(nvcc, gpu, Path(folder))
        planned, written = list(plans(cuda)), list(texts(cuda))
    writers = [row for row in rows if row["pass"] == "generate"]
    rows = [row for row in rows if row["pass"] in PASSES]
    return {"nvcc": version(nvcc), "kernels": rows, "plans": planned, "writers": writers, "texts": written}


def kernel_table(rows: Collection[Row]) -> str:
    """A line for each kernel, with a figure for each GPU where they differ."""
    gpus = list(dict.fromkeys(row["gpu"] for row in rows))
    by_kernel: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in sorted(rows, key=_order):
        by_kernel.setdefault(_kernel(row), {})[row["gpu"]] = row
    return markdown(
        (*KERNEL.values(), *FIGURES.values()),
        (
            [
                *map(str, kernel),
                *(_figures([found.get(gpu, {}).get(what, DASH) for gpu in gpus]) for what in FIGURES),
            ]
            for kernel, found in by_kernel.items()
        ),
    )


def plan_table(rows: Collection[Row]) -> str:
    """Plans on the card of the model, with the terms of a step."""
    heads = ("H", "B", "product", "pass", "kernel", "blocks", "units", "kept", "K splits", "threads",
             "shared KiB", *TERMS.values(), "rounds", "predicted µs a step", "measured")  # fmt: skip
    lines: list[Sequence[str]] = []
    for row in rows:
        if row["gpu"] != PREDICTED:
            continue
        case, plan = [str(row[key]) for key in ("H", "B", "precision", "pass")], row["plan"]
        if plan is None:
            lines.append([*case, "none fits", *[DASH] * (len(heads) - len(case) - 1)])
            continue
        kernel = plan["kernel"]
        numbers = (plan["slices"], plan["units"], kernel["kept"], plan["k_splits"], plan["threads"])
        lines.append([
            *case, kernel["regime"], *map(str, numbers), f"{plan['shared_bytes'] / 1024:.0f}",
            *(f"{plan['terms'][term]:.2f}" for term in TERMS), str(plan["rounds"]), f"{plan['step_us']:.2f}",
            NOT_MEASURED,
        ])  # fmt: skip
    return markdown(heads, lines)


def other_table(rows: Collection[Row]) -> str:
    """Plans of the cards that the model is not of, in short."""
    gpus = [gpu for gpu in CARDS if gpu != PREDICTED]
    found: dict[tuple[Any, ...], dict[str, list[str]]] = {}
    for row in rows:
        case = found.setdefault((row["H"], row["B"], row["precision"]), {})
        case.setdefault(row["gpu"], []).append(_short(row["plan"]))
    lines = ([*map(str, case), *(" / ".join(cells[gpu]) for gpu in gpus)] for case, cells in found.items())
    return markdown(("H", "B", "product", *gpus), lines)


def writer_table(rows: Collection[Row]) -> str:
    """A line for each kernel that writes, with a figure for each GPU where they differ."""
    by_kernel: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_kernel.setdefault(tuple(str(row[key]) for key in ("precision", "streams", "threads")), []).append(
            row
        )
    figures = {what: head for what, head in FIGURES.items() if what != "mma"}
    lines = (
        [*kernel, *(_figures([row.get(what, DASH) for row in found]) for what in figures)]
        for kernel, found in by_kernel.items()
    )
    return markdown(("weights", "streams", "threads", *figures.values()), lines)


def text_table(rows: Collection[Row]) -> str:
    """Plans of models that write, with the terms of a character."""
    heads = ("L", "H", "V", "B", "weights", "blocks", "units", "kept", "shared KiB", *WRITER_TERMS.values(),
             "predicted µs a character", "predicted characters a second", "measured")  # fmt: skip
    lines: list[Sequence[str]] = []
    for row in rows:
        case, plan = [str(row[key]) for key in ("L", "H", "V", "B", "precision")], row["plan"]
        if plan is None:
            lines.append([*case, "none fits", *[DASH] * (len(heads) - len(case) - 1)])
            continue
        kept = plan["kept"] / ((2 * row["L"] - 1 + plan["turns"]) * plan["steps"])
        lines.append([
            *case, str(plan["slices"]), str(plan["units"]), f"{kept:.0%}",
            f"{plan['shared_bytes'] / 1024:.0f}",
            *(f"{plan['terms'][term]:.2f}" for term in WRITER_TERMS), f"{plan['character_us']:.1f}",
            f"{row['B'] / plan['character_us'] * 1e6:,.0f}", NOT_MEASURED,
        ])  # fmt: skip
    return markdown(heads, lines)


def document(record: Mapping[str, Any]) -> str:
    """docs/cuda_kernels.md for a record."""
    return DOCUMENT.format(
        nvcc=record["nvcc"],
        clean=", ".join(CLEAN),
        gpus=" / ".join(dict.fromkeys(row["gpu"] for row in record["kernels"])),
        kernels=kernel_table(record["kernels"]),
        plans=plan_table(record["plans"]),
        others=other_table(record["plans"]),
        writers=writer_table(record["writers"]),
        texts=text_table(record["texts"]),
    )


def main() -> None:
    """Compiles everything and writes what came out."""
    record = report()
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    PAGE.write_text(document(record))
    print(f"wrote {RECORD} and {PAGE}")


def _architecture(gpu: str) -> tuple[str, str]:
    return "-gencode", f"arch=compute_{gpu.removeprefix('sm_')},code={gpu}"


def _told(plan: Any) -> Row:
    return {**dataclasses.asdict(plan), "threads": plan.threads, "step_us": plan.step_us}


def _kernel(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in KERNEL)


def _figures(each: Sequence[Any]) -> str:
    return " / ".join(map(str, each if len(set(each)) > 1 else each[:1]))


def _order(row: Row) -> tuple[Any, ...]:
    if row["pass"] not in PASSES:
        return len(PASSES), row["precision"], row["streams"]
    way, *rest = _kernel(row)
    return PASSES.index(way), *rest


def _short(plan: Row | None) -> str:
    if plan is None:
        return DASH
    return (
        f"{plan['kernel']['regime']} {plan['slices']} of {plan['units']}, {plan['shared_bytes'] / 1024:.0f}"
    )


def _run(command: Sequence[str | Path]) -> str:
    """What a command says; where it fails, that is the error's words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    main()
