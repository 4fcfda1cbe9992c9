"""Which CUDA kernel serves a recurrence, and how it is cut: the shortest step by a model of the card.

A step is a product (multiply-adds against what is read from shared memory), the sums of the warps that share
it, the cells, and what brings h, or pieces of dh, to the other blocks. The constants are an H100's, by data
sheet and published micro-benchmarks; docs/kernels.md says which of them a card has confirmed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ... import _cuda

TILE, GROUP, WARP = 16, 8, 32  # sequences of a block, units of a group, threads of a warp: as csrc/cuda
PAIRS = TILE // 4  # cells of a lane, before its group shares them
GROUPS = 15  # of a block at most, when their warps meet: named barriers
CLOCK_GHZ = 1.755
SHARED_BYTES_PER_CLOCK = 128
MACS_PER_CLOCK = {"bfloat16": 1290, "float16": 1290, "tf32": 645, "tf32x3": 215}  # of mma.sync
CELL_US = 0.1  # exponentials and what waits for them
MEET_US = {"block": 0.02, "cluster": 0.2, "grid": 0.9}  # threads meet; a hop to other blocks and what arrives
L2_BYTES_PER_CLOCK = 40  # of one multiprocessor, all of them reading
CLUSTERS = (2, 4, 8, 16)
GRID_Y = 65_535  # tiles of a launch at most: the driver's limit


@dataclass(frozen=True)
class Card:
    """What a plan asks of a GPU: multiprocessors, bytes of shared memory of a block, and its generation."""

    multiprocessors: int
    shared_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Kernel:
    """A kernel as csrc/cuda/launch.h tells of it, with its number there."""

    number: int
    regime: str
    precision: str
    kept: int
    k_steps: int
    splits: int
    threads: int


@dataclass(frozen=True)
class Terms:
    """What a step of one tile takes, each in µs.

    Args:
        product_us: multiply-adds. shared_memory_us: reading their operands, meanwhile.
        sums_us: parts of sums, or pieces of dh, to and from shared memory.
        cells_us: of the gates and states.
        meet_us: threads meet, and blocks.
        l2_us: h, or pieces of dh, to and from L2.
    """

    product_us: float
    shared_memory_us: float
    sums_us: float
    cells_us: float
    meet_us: float
    l2_us: float

    @property
    def step_us(self) -> float:
        """All of them; the products and the reads go on at the same time."""
        one_after_another = self.sums_us + self.cells_us + self.meet_us + self.l2_us
        return max(self.product_us, self.shared_memory_us) + one_after_another


@dataclass(frozen=True)
class Plan:
    """A kernel, and how the hidden units are cut.

    Args:
        kernel: which one.
        slices: blocks that share a tile of sequences. units: hidden units of each.
        k_splits: parts of the product along K (backward).
        tiles_at_once: of sequences in both directions.
        shared_bytes: of a block.
        terms: the predicted time of a step of one tile.
        rounds: of tiles_at_once, one after another.
    """

    kernel: Kernel
    slices: int
    units: int
    k_splits: int
    tiles_at_once: int
    shared_bytes: int
    terms: Terms
    rounds: int

    @property
    def step_us(self) -> float:
        """The predicted time of a step, for all tiles."""
        return self.terms.step_us * self.rounds

    @property
    def threads(self) -> int:
        return self.units // GROUP * self.kernel.splits * WARP


# Bytes of shared memory, by a kernel's number, [T, B, N, H, D, slices, units] and, backward, k_splits.
SharedBytes = Callable[..., int]


def forward_plans(
    B: int, H: int, D: int, precision: str, card: Card, kernels: list[Kernel], shared_bytes: SharedBytes
) -> list[Plan]:
    """Every plan that fits, the shortest predicted step first.

    Args:
        B: sequences. H: hidden units. D: directions.
        precision: "bfloat16", "float16", "tf32" or "tf32x3".
        card: what it runs on.
        kernels: those that there are.
        shared_bytes: what they need.
    """
    found = []
    for kernel, slices, units in _cuts(H, precision, card, kernels):
        size = _bytes(precision)
        width, warps = slices * units, units // GROUP * kernel.splits
        if width * size % (32 * kernel.splits):
            continue
        needed = shared_bytes(kernel.number, [1, B, B, H, D, slices, units])
        k_steps = width * size // 32 // kernel.splits
        kept_bytes = max(k_steps - kernel.kept, 0) * 2 * warps * 512
        read = warps * TILE * width * size // kernel.splits + kept_bytes
        sums = 2 * (units // GROUP) * PAIRS * (kernel.splits - 1) * 512
        terms = _terms(kernel, units, width, read, sums, TILE * width * size)
        found.append(_plan(kernel, slices, units, 1, needed, terms, B, D, card))
    return _sorted(found)


def backward_plans(
    B: int, H: int, D: int, precision: str, card: Card, kernels: list[Kernel], shared_bytes: SharedBytes
) -> list[Plan]:
    """As forward_plans."""
    found = []
    for kernel, slices, units in _cuts(H, precision, card, kernels):
        size = _bytes(precision)
        width, warps, all_steps = slices * units, units // GROUP * kernel.splits, 4 * units * size // 32
        for k_splits in (1, 2, 4, 8, 16):
            k_steps = all_steps // k_splits
            if warps % k_splits or all_steps % k_splits or k_steps > kernel.k_steps:
                continue
            needed = shared_bytes(kernel.number, [1, B, B, H, D, slices, units], k_splits)
            tiles = math.ceil(math.ceil(width / 16) / (warps // k_splits))
            kept_bytes = max(tiles - kernel.kept, 0) * k_steps * warps * 512
            read = warps * TILE * 4 * units * size // k_splits + kept_bytes
            pieces = 2 * k_splits * TILE * width * 4  # of dh, written and read
            sums = pieces if kernel.regime != "grid" else 0
            terms = _terms(kernel, units, width, read, sums, pieces)
            found.append(_plan(kernel, slices, units, k_splits, needed, terms, B, D, card))
    return _sorted(found)


def _cuts(H: int, precision: str, card: Card, kernels: list[Kernel]) -> Iterator[tuple[Kernel, int, int]]:
    """Kernels of a precision with numbers of slices and of units of each that a block can have."""
    for kernel in kernels:
        if kernel.precision != precision or (kernel.regime == "cluster" and card.capability < (9, 0)):
            continue
        most = kernel.threads // (WARP * kernel.splits) * GROUP
        if kernel.splits > 1:
            most = min(most, GROUPS * GROUP)
        seen = set()
        for slices in {"block": (1,), "cluster": CLUSTERS}.get(
            kernel.regime, range(2, card.multiprocessors + 1)
        ):
            least = math.ceil(H / slices)
            # Steps along K take 32 bytes, and each warp of a group as many of them.
            step = next(
                u for u in range(GROUP, 33 * GROUP, GROUP)
                if slices * u * _bytes(precision) % (32 * kernel.splits) == 0
            )  # fmt: skip
            units = math.ceil(least / step) * step
            used = math.ceil(H / units)
            if kernel.regime == "grid":
                slices = used if used * units * _bytes(precision) % (32 * kernel.splits) == 0 else slices
            if units <= most and (slices, units) not in seen:
                seen.add((slices, units))
                yield kernel, slices, units


def _plan(
    kernel: Kernel, slices: int, units: int, k_splits: int, shared_bytes: int, terms: Terms, B: int, D: int,
    card: Card,
) -> Plan | None:  # fmt: skip
    """The plan, or None where it does not fit on the card."""
    tiles = math.ceil(B / TILE)
    at_once = card.multiprocessors // slices // D
    if shared_bytes > card.shared_bytes or at_once < 1:
        return None
    # Only the blocks of a grid wait for blocks that might not have begun; others may queue.
    limit = at_once if kernel.regime == "grid" else GRID_Y
    together, rounds = max(1, min(limit, tiles)), math.ceil(tiles / at_once)
    return Plan(kernel, slices, units, k_splits, together, shared_bytes, terms, rounds)


def _sorted(plans: list[Plan | None]) -> list[Plan]:
    return sorted((plan for plan in plans if plan is not None), key=lambda plan: plan.step_us)


def _bytes(precision: str) -> int:
    return 2 if precision.endswith("float16") else 4


def _terms(kernel: Kernel, units: int, width: int, read: int, sums: int, moved: int) -> Terms:
    """The terms of a step, from bytes read and summed in shared memory, and moved through L2 by a grid."""
    return Terms(
        product_us=_us(TILE * 4 * units * width / MACS_PER_CLOCK[kernel.precision]),
        shared_memory_us=_us(read / SHARED_BYTES_PER_CLOCK),
        sums_us=_us(sums / SHARED_BYTES_PER_CLOCK),
        cells_us=CELL_US,
        meet_us=MEET_US[kernel.regime],
        l2_us=_us(moved / L2_BYTES_PER_CLOCK) if kernel.regime == "grid" else 0.0,
    )


def _us(clocks: float) -> float:
    return clocks / CLOCK_GHZ / 1e3


@functools.cache
def card(index: int) -> Card:
    """The card of an index."""
    multiprocessors, shared_bytes, major, minor = _cuda.device(index)
    return Card(multiprocessors, shared_bytes, (major, minor))
