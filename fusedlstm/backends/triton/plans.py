"""Which kernel serves a layer, and in which blocks: the shortest step by a model of the card.

A step of a persistent kernel is made of terms that do not overlap: the products, W_hh read from shared memory
(where Triton keeps it), the exchange with the other slices, the barrier and the cells. The constants are an
H100's, by data sheet and published micro-benchmarks; docs/kernels.md says which of them a card has confirmed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton

CLOCK_GHZ = 1.755
SHARED_BYTES_PER_CLOCK = 128
# Multiply-adds a clock and multiprocessor of mma.sync, at two thirds of its peak.
MACS_PER_CLOCK = {"half": 1300, "tf32": 650, "tf32x3": 220}
L2_BYTES_PER_CLOCK = 40  # of one multiprocessor, all of them reading
BARRIER_US = 0.9  # release, then acquire through L2, with Triton's two barriers of the block around them
CELL_US = 0.35  # latency of what every step does one after another: exponentials, layouts, stores
LAUNCH_US = 2.5  # of one step's kernel in a graph, its cells included
STEP_SHARED_BYTES = 48 << 10  # of the step kernels at most: two stages of their operands
SPARE_SHARED_BYTES = 28 << 10  # beside W_hh: h, dgates and changes of layout


@dataclass(frozen=True)
class Card:
    """What a plan asks of a GPU: multiprocessors, bytes of shared memory that a block may have, its name."""

    multiprocessors: int
    shared_bytes: int
    name: str = ""


@dataclass(frozen=True)
class Plan:
    """One kernel's blocks.

    Args:
        regime: "tile": persistent, a program has all hidden units; "grid": persistent, SLICES programs share
            them; "step": a launch for every step.
        SLICES: programs that share a batch tile's hidden units.
        BLOCK_B: sequences. BLOCK_H: hidden units. BLOCK_K: width of a piece of the product.
        num_warps, num_stages: as Triton names them.
        step_us: the predicted time of a step.
    """

    regime: str
    SLICES: int
    BLOCK_B: int
    BLOCK_H: int
    BLOCK_K: int
    num_warps: int
    num_stages: int
    step_us: float

    def options(self) -> dict[str, Any]:
        """What the launch of a kernel is given beside its tensors and sizes."""
        names = ("BLOCK_B", "BLOCK_H", "BLOCK_K", "num_warps", "num_stages")
        return {name: getattr(self, name) for name in names}


@functools.cache
def card(index: int) -> Card:
    """The card of an index, as torch counts them."""
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return Card(
        properties["multiprocessor_count"], properties["max_shared_mem"], torch.cuda.get_device_name(index)
    )


def candidates(B: int, H: int, D: int, dtype: torch.dtype, precision: str, card: Card) -> list[Plan]:
    """Every plan that fits, the shortest predicted step first.

    Args:
        B: sequences. H: hidden units. D: directions.
        dtype: of storage: float32, float16 or bfloat16.
        precision: of float32 products: "tf32", or "tf32x3", which splits every number in two.
        card: what it runs on.
    """
    plans = [*_persistent(B, H, D, dtype, precision, card), _step(B, H, D, dtype, precision, card)]
    return sorted(plans, key=lambda plan: plan.step_us)


def _persistent(B: int, H: int, D: int, dtype: torch.dtype, precision: str, card: Card) -> Iterator[Plan]:
    macs_per_clock = MACS_PER_CLOCK[precision if dtype == torch.float32 else "half"]
    whole = max(16, triton.next_power_of_2(H))
    BLOCK_K = min(whole, 128)
    width = triton.cdiv(H, BLOCK_K) * BLOCK_K
    bytes_per_unit = 4 * width * dtype.itemsize * (2 if precision == "tf32x3" else 1)  # of W_hh
    for BLOCK_H, BLOCK_B in itertools.product((16, 32, 64, 128), (16, 32, 64)):
        SLICES = triton.cdiv(H, BLOCK_H)
        programs = SLICES * triton.cdiv(B, BLOCK_B) * D
        fits = (
            whole >= BLOCK_H
            and (SLICES > 1 or BLOCK_H == BLOCK_K)
            and BLOCK_B * dtype.itemsize <= 128
            and BLOCK_B * BLOCK_H * dtype.itemsize <= 4096  # or registers are spilled
            and BLOCK_H * bytes_per_unit <= card.shared_bytes - SPARE_SHARED_BYTES
            and (SLICES == 1 or programs <= card.multiprocessors)  # all there at once
        )
        if fits:
            macs = BLOCK_B * 4 * BLOCK_H * width
            shared = BLOCK_H * bytes_per_unit / SHARED_BYTES_PER_CLOCK
            us = max(macs / macs_per_clock, shared) / CLOCK_GHZ / 1e3 + CELL_US
            if SLICES > 1:
                us += BARRIER_US + BLOCK_B * width * dtype.itemsize / L2_BYTES_PER_CLOCK / CLOCK_GHZ / 1e3
            us *= triton.cdiv(programs, card.multiprocessors)
            regime = "tile" if SLICES == 1 else "grid"
            num_warps = 4 if BLOCK_B * BLOCK_H <= 256 else 8
            yield Plan(regime, SLICES, BLOCK_B, BLOCK_H, BLOCK_K, num_warps, 1, us)


def _step(B: int, H: int, D: int, dtype: torch.dtype, precision: str, card: Card) -> Plan:
    size = dtype.itemsize
    BLOCK_B, BLOCK_H = min(max(16, triton.next_power_of_2(B)), 64), 64 // size
    programs = triton.cdiv(H, BLOCK_H) * triton.cdiv(B, BLOCK_B) * D
    macs = BLOCK_B * 4 * BLOCK_H * H
    read = (BLOCK_B + 4 * BLOCK_H) * H * size
    clocks = max(macs / MACS_PER_CLOCK[precision if size == 4 else "half"], read / L2_BYTES_PER_CLOCK)
    us = LAUNCH_US + triton.cdiv(programs, card.multiprocessors) * clocks / CLOCK_GHZ / 1e3
    return Plan("step", 0, BLOCK_B, BLOCK_H, 128 // size, 8 if BLOCK_B == 64 else 4, 2, us)
