"""What Triton's compiler makes of the backend's kernels: registers, spills, shared memory, instructions.

It needs no GPU. The launches are those of the backend: its layers run on CPU tensors, and in place of each
kernel stands a recorder. TRITON_INTERPRET must not be set. `python -m benchmarks.aot` writes results/aot.json
and docs/triton_kernels.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from benchmarks.results import RESULTS, ROOT
from fusedlstm.backends.triton import graph_kernels, kernels, layer
from fusedlstm.backends.triton.plans import Card, Plan, candidates

if triton.knobs.runtime.interpret:
    raise RuntimeError(
        "TRITON_INTERPRET is set: the kernels would run on the CPU, there is nothing to compile"
    )

HALF, TF32, SPLIT = (torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "tf32x3")


@dataclass(frozen=True)
class GPU:
    """What kernels are compiled for.

    Args:
        target: as Triton names it.
        card: what a plan asks of it.
        mma: the names of its matrix instructions.
        products: dtypes, and how their products are made, of which Triton knows code for it.
    """

    target: GPUTarget
    card: Card
    mma: str
    products: tuple[tuple[torch.dtype, str], ...] = (HALF, TF32, SPLIT)


# An A100, an H100, a B200 and an MI300X.
GPUS = {
    "sm_80": GPU(GPUTarget("cuda", 80, 32), Card(108, 163 << 10), "HMMA"),
    "sm_90": GPU(GPUTarget("cuda", 90, 32), Card(132, 227 << 10), "HG?MMA"),
    "sm_100": GPU(GPUTarget("cuda", 100, 32), Card(148, 227 << 10), "(?:UTC)?HMMA"),
    "gfx942": GPU(GPUTarget("hip", "gfx942", 64), Card(304, 64 << 10), r"v_mfma\w*", (HALF, TF32)),
}
SHAPES = [(64, 64), (128, 16), (256, 64), (512, 16), (512, 128), (1024, 64)]  # H, B
RECORD = RESULTS / "aot.json"
PASSES = "forward", "backward"
PREDICTED = "sm_90"  # the model's constants are an H100's
DOCUMENT = """# What the Triton kernels compile to

Written by `python -m benchmarks.aot` with triton {triton}; no GPU is needed, and none was used. Each row is
what the backend chooses for one layer of H hidden units and B sequences: a program of the kernel "tile" has
all hidden units of a batch tile for all steps, those of "grid" share them, and "step" is launched for every
step. Where two figures stand, the first is of the forward pass, the second of the backward pass. Registers
are those of a thread. A spill is an instruction that moves registers to or from memory; on AMD's GPUs it is a
register that was moved. A product "tf32x3" splits each float32 in two TF32 numbers. The last column is what
the model in `fusedlstm/backends/triton/plans.py` predicts for an H100, and chooses by; it is not measured.

`tests/test_triton_aot.py` holds the kernels to this: on NVIDIA's GPUs nothing spills, blocks fit in shared
memory, and products are made by matrix instructions.

{table}
"""


@dataclass(frozen=True)
class Launch:
    """One kernel as the backend launches it: what its machine code depends on."""

    kernel: JITFunction
    signature: dict[str, str]
    constexprs: dict[str, Any]
    aligned: frozenset[str]
    num_warps: int
    num_stages: int


def report(launch: Launch, gpu: GPU) -> dict[str, Any]:
    """Compiles a kernel and reads its machine code.

    Args:
        launch: the kernel and all that its code depends on.
        gpu: what to compile for; none need be there.

    Returns:
        "registers" of a thread, "spills" (loads from and stores to its stack; on AMD registers),
        "shared_bytes" of a block, and "mma", how often each matrix instruction occurs.
    """
    names = launch.kernel.arg_names
    source = ASTSource(
        launch.kernel,
        {name: launch.signature.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in launch.constexprs.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=gpu.target, options=options)
    read = _read_cuda if gpu.target.backend == "cuda" else _read_hip
    registers, spills, code = read(compiled.asm)
    return {
        "registers": registers,
        "spills": spills,
        "shared_bytes": compiled.metadata.shared,
        "mma": dict(Counter(re.findall(rf"\b{gpu.mma}\b", code))),
    }


def launches(
    plan: Plan, H: int, B: int, dtype: torch.dtype, precision: str, resets: bool = False
) -> dict[str, Launch]:
    """The kernels "forward" and "backward" of one layer of dense, equally long sequences, as planned."""
    found: dict[str, Launch] = {}
    T = 2
    x, h0, c0 = (torch.zeros(shape, dtype=dtype) for shape in ((T * B, H), (1, B, H), (1, B, H)))
    weights = [torch.zeros(shape, dtype=dtype) for shape in ((4 * H, H), (4 * H, H), (4 * H,), (4 * H,))]
    fresh = torch.zeros(1, T * B, dtype=torch.bool) if resets else None
    for name in PASSES:
        recorded: list[Launch] = []
        with mock.patch.object(layer, "kernels", _Recorder(recorded)):
            if name == "forward":
                y, h_n, c_n, c, gates = layer.forward(plan, precision, x, None, h0, c0, weights, True, fresh)
            else:
                layer.backward(
                    plan, precision, y, h_n, c_n, x, None, h0, c0, weights, y, c, gates, True, True, fresh
                )
        if any(launch != recorded[0] for launch in recorded):
            raise RuntimeError(
                f"{plan.regime}, {name}: steps are compiled apart, so a new length compiles anew"
            )
        found[name] = recorded[0]
    return found


def in_graph(launch: Launch, dtype: torch.dtype) -> Launch:
    """A step's launch as a CUDA graph holds it."""
    kernel = getattr(graph_kernels, launch.kernel.__name__.replace("_step_", "_graph_"))
    names = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    constexprs = {name: value for name, value in launch.constexprs.items() if name in names}
    constexprs["DTYPE"] = getattr(tl, str(dtype).removeprefix("torch."))
    types = {"table_ptr": "*i64", "k": "i32"}
    return replace(
        launch, kernel=kernel, signature=types, constexprs=constexprs, aligned=frozenset({"table_ptr"})
    )


def rows(
    gpus: Mapping[str, GPU] = GPUS, shapes: Collection[tuple[int, int]] = SHAPES
) -> Iterator[dict[str, Any]]:
    """Compiles what the backend chooses for each shape (H, B) on each GPU, in all dtypes and both passes."""
    for (name, gpu), (H, B) in itertools.product(gpus.items(), shapes):
        for dtype, precision in gpu.products:
            plan = candidates(B, H, 1, dtype, precision, gpu.card)[0]
            case = {"dtype": str(dtype).removeprefix("torch."), "precision": precision, "H": H, "B": B}
            found = {
                way: report(launch, gpu) for way, launch in launches(plan, H, B, dtype, precision).items()
            }
            yield {"gpu": name, **case, "plan": dataclasses.asdict(plan), **found}


def table(found: Collection[Mapping[str, Any]]) -> str:
    """The rows in Markdown; forward / backward where they differ."""
    head = (
        "GPU", "dtype", "product", "H", "B", "kernel", "blocks of B, H, K", "warps", "registers", "spills",
        "shared KiB", "matrix instructions", "predicted µs a forward step",
    )  # fmt: skip
    lines: list[Collection[Any]] = [head, ["---"] * len(head)]
    for row in found:
        plan, passes = row["plan"], [row[way] for way in PASSES]
        lines.append([
            *(row[key] for key in ("gpu", "dtype", "precision", "H", "B")), plan["regime"],
            ", ".join(str(plan[f"BLOCK_{axis}"]) for axis in "BHK"), plan["num_warps"],
            *(" / ".join(str(way[key]) for way in passes) for key in ("registers", "spills")),
            " / ".join(f"{way['shared_bytes'] / 1024:.0f}" for way in passes),
            " / ".join(", ".join(f"{n} {name}" for name, n in way["mma"].items()) for way in passes),
            f"{plan['step_us']:.2f}" if row["gpu"] == PREDICTED else "-",
        ])  # fmt: skip
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


class _Recorder:
    """Stands for the module of kernels, and keeps what each is launched with."""

    def __init__(self, recorded: list[Launch]) -> None:
        self._recorded = recorded

    def __getattr__(self, name: str) -> _Kernel:
        return _Kernel(getattr(kernels, name), self._recorded)


class _Kernel:
    def __init__(self, kernel: JITFunction, recorded: list[Launch]) -> None:
        self._kernel, self._recorded = kernel, recorded

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **given: self._recorded.append(_launch(self._kernel, given))


def _launch(kernel: JITFunction, given: dict[str, Any]) -> Launch:
    """What Triton would specialize a launch on."""
    signature, constexprs, aligned = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or (special and value is number and number == 1):
            constexprs[name] = value
        else:
            signature[name] = mangle_type(value)
            if special and number % 16 == 0:
                aligned.add(name)
    return Launch(kernel, signature, constexprs, frozenset(aligned), given["num_warps"], given["num_stages"])


def _read_cuda(asm: Mapping[str, Any]) -> tuple[int, int, str]:
    """Registers, spills and the code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        done = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    code = done.stdout + done.stderr
    return _number(r"REG:(\d+)", code), len(re.findall(r"\b(?:STL|LDL)\b", code)), code


def _read_hip(asm: Mapping[str, Any]) -> tuple[int, int, str]:
    code = asm["amdgcn"]
    return _number(r"\.vgpr_count: +(\d+)", code), _number(r"\.vgpr_spill_count: +(\d+)", code), code


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern} in what the compiler's tools say")
    return int(found[1])


def document(record: Mapping[str, Any]) -> str:
    """docs/triton_kernels.md for a record of rows."""
    return DOCUMENT.format(triton=record["triton"], table=table(record["rows"]))


def main() -> None:
    """Compiles all rows and writes what came out."""
    found = []
    for row in rows():
        found.append(row)
        print(table([row]).splitlines()[-1], flush=True)
    record = {"triton": triton.__version__, "rows": found}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    (ROOT / "docs" / "triton_kernels.md").write_text(document(record))


if __name__ == "__main__":
    main()
