"""Faults planted in the CUDA kernels: parity, or the shim, must catch each of them within a few seeds."""

from __future__ import annotations

import ctypes
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import cuda_on_cpu
import fusedlstm
from cases import Case, Results, assert_close, ours

if reason := cuda_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)

CSRC = Path(__file__).resolve().parent.parent / "csrc"
SEEDS = 12
# Two tiles, lengths that differ, resets, units that are padding.
CASE = Case(6, 19, 3, 60, packed="unsorted", resets=True)
SLICES = {"block": 1, "cluster": 4, "grid": 4}
# One kernel of each regime and direction of time, with so few registers that shared memory keeps weights too.
TABLES = """
extern "C" { int planted = 0; }
#include "table.cuh"
namespace fusedlstm::gpu {
void add_block(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<BlockForward, 2, 1, 512, Bf16>(forward);
  add_backward<BlockBackward, 1, 8, 1, 512, Bf16>(backward);
}
void add_cluster(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<ClusterForward, 1, 2, 256, Bf16>(forward);
  add_backward<ClusterBackward, 1, 8, 2, 256, Bf16>(backward);
}
void add_grid(std::vector<ForwardEntry>& forward, std::vector<BackwardEntry>& backward) {
  add_forward<GridForward, 1, 4, 256, Bf16>(forward);
  add_backward<GridBackward, 1, 8, 4, 256, Bf16>(backward);
}
}  // namespace fusedlstm::gpu
"""


@dataclass(frozen=True)
class Fault:
    """What stands in a source, and what stands there instead while the fault is planted.

    Args:
        name: of the fault.
        regime: that must show it.
        file: of csrc/cuda.
        after: texts, each behind the one before it, behind the last of which the search begins.
        right: a statement with its semicolon, or an expression.
        wrong: of the same kind; "" leaves a statement out.
    """

    name: str
    regime: str
    file: str
    after: tuple[str, ...]
    right: str
    wrong: str

    def begin(self, text: str) -> int:
        at = 0
        for mark in (*self.after, self.right):
            at = text.index(mark, at)
        return at


def planted(text: str, faults: dict[int, Fault]) -> str:
    """The source with all faults, each behind a question for its number."""
    changes: dict[tuple[int, str], str] = {}
    for number, fault in faults.items():
        place = fault.begin(text), fault.right
        now = changes.get(place, fault.right)
        if fault.right.endswith(";"):
            changes[place] = f"{{ if (planted == {number}) {{ {fault.wrong} }} else {now} }}"
        else:
            changes[place] = f"(planted == {number} ? ({fault.wrong}) : ({now}))"
    for (begin, right), now in sorted(changes.items(), reverse=True):
        text = text[:begin] + now + text[begin + len(right) :]
    return text


F, B, P, X = "forward.cuh", "backward.cuh", "place.cuh", "exchange.cuh"
BLOCK, BLOCK_BACK = "struct BlockForward", "struct BlockBackward"
CLUSTER, CLUSTER_BACK, ARRIVALS = "struct ClusterForward", "struct ClusterBackward", "struct Arrivals"
GRID, GRID_BACK, FLAGS = "struct GridForward", "struct GridBackward", "struct Flags"
GIVE, GATHER, WAIT = "void give(", "void gather(", "wait(int64_t"
SYNC, SYNC_SOME = "sync_threads();", "sync_some(1 + me.group, 32 * KS);"
COLUMN = "p / 2 * 8 + 2 * t + p % 2"
FAULTS = [
    Fault("no barrier in give", "block", X, (BLOCK, GIVE), SYNC, ""),
    Fault("no barrier in give", "cluster", X, (CLUSTER, GIVE), SYNC, ""),
    Fault("no barrier in give", "grid", X, (GRID, GIVE), SYNC, ""),
    Fault("no barrier before the flag", "grid", X, (GRID, GIVE, "store_16"), SYNC, ""),
    Fault("no barrier behind the copy of h", "grid", X, (GRID, WAIT, "load_16"), SYNC, ""),
    Fault("no barrier behind the flags", "grid", X, (FLAGS, WAIT), SYNC, ""),
    Fault("no barrier in gather", "block", X, (BLOCK_BACK, GATHER), SYNC, ""),
    Fault("no barrier in gather", "grid", X, (GRID_BACK, GATHER), SYNC, ""),
    Fault("no barrier in the sums", "cluster", F, ("KS > 1",), SYNC_SOME, ""),
    Fault("no barrier in the sums", "grid", X, (GRID_BACK, GATHER), SYNC_SOME, ""),
    Fault("all groups at one barrier", "cluster", F, ("KS > 1",), SYNC_SOME, "sync_some(1, 32 * KS);"),
    Fault("no barrier before the product", "block", B, ("row[g * n.units",), SYNC, ""),
    Fault("no barrier before the product", "cluster", B, ("row[g * n.units",), SYNC, ""),
    Fault("no barrier before the first step", "block", F, ("Exchange exchange",), SYNC, ""),
    Fault("no cluster_sync", "cluster", X, (ARRIVALS,), "cluster_sync();", ""),
    Fault("a flag of one less", "grid", X, (GRID, WAIT), "flags.wait(s);", "flags.wait(s - 1);"),
    Fault("a flag of one less", "grid", X, (GRID_BACK, GATHER), "flags.wait(k + 1);", "flags.wait(k);"),
    Fault("a flag of one more", "grid", X, (GRID, GIVE), "flags.raise(s + 1);", "flags.raise(s + 2);"),
    Fault("a flag too few", "grid", X, (FLAGS, WAIT), "k < slices", "k < slices - 1"),
    Fault("a plain store for the release", "grid", X, (FLAGS, "raise("),
          "store_release(flags + slice, static_cast<uint32_t>(count));",
          "flags[slice] = static_cast<uint32_t>(count);"),
    Fault("few bytes", "cluster", X, (CLUSTER, "ClusterForward(const", "arrivals("),
          "n.slices * TILE * at.stage_row", "n.slices * TILE * at.stage_row - 16"),
    Fault("many bytes", "cluster", X, (CLUSTER_BACK, "arrivals("),
          "n.slices * k_splits * (n.units / 8) * 512", "n.slices * k_splits * (n.units / 8) * 512 + 16"),
    Fault("the other parity", "cluster", X, (ARRIVALS, WAIT), "k / 2 % 2", "1 - k / 2 % 2"),
    Fault("no wait", "cluster", X, (CLUSTER, WAIT), "arrivals.wait(s - 1);", ""),
    Fault("no wait", "cluster", X, (CLUSTER_BACK, GATHER), "arrivals.wait(k);", ""),
    Fault("one mbarrier", "cluster", X, (CLUSTER, GIVE), "arrivals.bars[s % 2]", "arrivals.bars[0]"),
    Fault("one buffer of h", "block", X, (BLOCK, "buffer("), "s % 2", "0"),
    Fault("one buffer of h", "cluster", X, (CLUSTER, GIVE), "(s + 1) % 2", "0"),
    Fault("one stage", "cluster", X, (CLUSTER, "stage(int64_t"), "s % 2", "0"),
    Fault("one buffer of pieces", "cluster", X, (CLUSTER_BACK, "from(int64_t"), "k % 2", "0"),
    Fault("one buffer of dgates", "cluster", B, ("operand =",), "k % Exchange::DGATES_BUFFERS", "0"),
    Fault("one buffer of mail", "grid", X, (GRID, "mail(int64_t"), "s % 2", "0"),
    Fault("one buffer of mail", "grid", X, (GRID_BACK, "mail(int64_t"), "k % 2", "0"),
    Fault("swapped gates of W_hh", "block", F, ("auto weights",), "2 * m + r % 2", "2 * m + 1 - r % 2"),
    Fault("swapped gates that are saved", "block", F, ("E* gates",), "gates[H]", "gates[2 * H]"),
    Fault("swapped gates of the gradient", "block", B, ("const float all",), "d.f", "d.g"),
    Fault("no shared memory for mbarriers", "cluster", F, ("s.bytes =",), "s.bars + 16", "s.bars"),
    Fault("no shared memory for half the weights", "block", F, ("s.bars =",), "kept * 2", "kept"),
    Fault("a sequence too few", "block", F, ("live[i] =",), "b < now.alive", "b < now.alive - 1"),
    Fault("lengths a step early", "block", F, ("now = next;",), "s + 2", "s + 3"),
    Fault("columns the other way", "block", P, ("int column(",), COLUMN, "p % 2 * 8 + 2 * t + p / 2"),
    Fault("columns four apart", "block", P, ("int column(",), COLUMN, "p / 2 * 8 + t + p % 2 * 4"),
    Fault("rows of ldmatrix", "block", P, ("void load_b(",), "lane / 16 * 8", "lane / 8 % 2 * 8"),
    Fault("pairs of another warp", "grid", P, ("void add_pairs(",), "p / PER_WARP<KS> == split",
          "p / PER_WARP<KS> == (split ^ 1)"),
    Fault("sums of itself", "grid", F, ("int from",), "me.split + other", "me.split + other - 1"),
    Fault("resets a step late", "block", F, ("c_saved[i] =",), "is_fresh(n, me.d, next, b)",
          "is_fresh(n, me.d, now, b)"),
    Fault("a gradient across a reset", "block", B, ("was_live >> i",), "was_fresh >> i & 1", "false"),
]  # fmt: skip


@contextmanager
def built_with(faults: Sequence[Fault], table: str, *left_out: str) -> Iterator[ModuleType]:
    """All faults in one module, each behind a question which of them is planted; 0 is none.

    Args:
        faults: in copies of their files.
        table: source of the kernels that are built.
        left_out: patterns of files that are not copied.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "csrc"
        shutil.copytree(CSRC, copy, ignore=shutil.ignore_patterns("cpu", *left_out, "*.cpp"))
        for file in {fault.file for fault in faults}:
            path = copy / "cuda" / file
            here = {number: fault for number, fault in enumerate(faults, 1) if fault.file == file}
            path.write_text(planted(path.read_text(), here))
        tables = copy / "cuda" / "tables.cu"
        tables.write_text(table)
        yield cuda_on_cpu.build_module("-O1", kernels=(tables,))


@pytest.fixture(scope="module")
def module() -> Iterator[ModuleType]:
    with built_with(FAULTS, TABLES, "*.cu") as built:
        assert len(built.forward_kernels()) == len(built.backward_kernels()) == len(SLICES)
        yield built


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Iterator[ModuleType]:
    backend = cuda_on_cpu.install(monkeypatch, module)
    fusedlstm.functional._resolve_cached.cache_clear()
    yield backend
    plant(module, 0, 0)
    fusedlstm.functional._resolve_cached.cache_clear()


def plant(module: ModuleType, number: int, seed: int) -> None:
    ctypes.c_int.in_dll(module.shim, "planted").value = number
    module.shim.shim_seed(seed)


def use(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType, regime: str) -> None:
    every = cuda._plans

    def chosen(*args: Any) -> list[Any]:
        plans = [p for p in every(*args) if p.kernel.regime == regime and p.slices == SLICES[regime]]
        return sorted(plans, key=lambda plan: plan.k_splits)

    monkeypatch.setattr(cuda, "_plans", chosen)


def went_wrong(module: ModuleType, number: int) -> str:
    """What parity, the shim, or a second order of the threads says of the fault, or nothing."""
    first: Results = {}
    for seed in range(SEEDS + 1):
        plant(module, number, seed)
        try:
            found = ours(CASE, torch.bfloat16, "cuda")
            assert_close(found, CASE, torch.bfloat16)
        except (AssertionError, RuntimeError) as error:
            return f"seed {seed}: {error}"
        first = first or found
        if differ := [name for name in found if not np.array_equal(found[name], first[name])]:
            return f"seed {seed}: other bits in {differ}"
    return ""


@pytest.mark.parametrize("regime", SLICES)
def test_without_a_fault_nothing_is_wrong(
    monkeypatch: pytest.MonkeyPatch, cuda: ModuleType, module: ModuleType, regime: str
) -> None:
    use(monkeypatch, cuda, regime)
    assert went_wrong(module, 0) == ""


@pytest.mark.parametrize(
    "number", range(1, len(FAULTS) + 1),
    ids=[re.sub(r"\W+", "-", f"{fault.regime} {fault.file} {fault.name}") for fault in FAULTS],
)  # fmt: skip
def test_a_fault_is_caught(
    monkeypatch: pytest.MonkeyPatch, cuda: ModuleType, module: ModuleType, number: int
) -> None:
    use(monkeypatch, cuda, FAULTS[number - 1].regime)
    said = went_wrong(module, number)
    print(said)
    assert said, f"{FAULTS[number - 1]} survives seeds 0 to {SEEDS}"
