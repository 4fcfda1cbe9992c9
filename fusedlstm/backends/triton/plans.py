"""Which kernel serves a layer, and in which blocks: the shortest step by a model of the card.

A step of a persistent kernel is made of terms that do not overlap: the products, W_hh read from shared memory
(where Triton keeps it), the exchange with the other slices, the barrier and the cells. The constants are an
H100's, by data sheet and published micro-benchmarks; docs/kernels.md says which of them a card has confirmed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton

CLOCK_GHZ = 1.755
SHARED_BYTES_PER_CLOCK = 128
# Multiply-adds a clock and multiprocessor of mma.sync, at the two thirds of its peak that are reached.
MACS_PER_CLOCK = {2: 1300, 4: 330}
L2_BYTES_PER_CLOCK = 40  # of one multiprocessor, all of them reading
BARRIER_US = 0.9  # release, then acquire through L2, with Triton's two barriers of the block around them
CELL_US = 0.35  # latency of what every step does one after another: exponentials, layouts, stores
LAUNCH_US = 2.5  # of one step's kernel in a graph, its cells included
SPARE_SHARED_BYTES = 28 << 10  # beside W_hh: h, dgates and changes of layout


@dataclass(frozen=True)
class Card:
    """What a plan asks of a GPU: multiprocessors, and bytes of shared memory that one block may have."""

    multiprocessors: int
    shared_bytes: int


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
    properties = torch.cuda.get_device_properties(index)
    return Card(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def candidates(B: int, H: int, D: int, size: int, card: Card) -> list[Plan]:
    """Every plan that fits, the shortest predicted step first.

    Args:
        B: sequences. H: hidden units. D: directions.
        size: bytes of one number of the storage dtype.
        card: what it runs on.
    """
    plans = [*_persistent(B, H, D, size, card), _step(B, H, D, size, card)]
    return sorted(plans, key=lambda plan: plan.step_us)


def _persistent(B: int, H: int, D: int, size: int, card: Card) -> list[Plan]:
    whole = max(16, triton.next_power_of_2(H))
    # Pieces of 256 where that leaves fewer columns of padding than the next power of two.
    BLOCK_K = min(whole, 128)
    width = triton.cdiv(H, BLOCK_K) * BLOCK_K
    plans = []
    for BLOCK_H in (16, 32, 64, 128):
        SLICES = triton.cdiv(H, BLOCK_H)
        if BLOCK_H > whole or (SLICES == 1 and BLOCK_H != BLOCK_K):
            continue
        if 4 * BLOCK_H * width * size > card.shared_bytes - SPARE_SHARED_BYTES:
            continue
        for BLOCK_B in (16, 32, 64):
            if BLOCK_B * BLOCK_H > 2048:
                continue  # more would not stay in registers
            programs = SLICES * triton.cdiv(B, BLOCK_B) * D
            if SLICES > 1 and programs > card.multiprocessors:
                continue  # programs that wait for one another must all be there
            waves = triton.cdiv(programs, card.multiprocessors)
            us = waves * _step_us(BLOCK_B, BLOCK_H, width, size, SLICES)
            num_warps = 4 if BLOCK_H * BLOCK_B < 1024 and width <= 128 and BLOCK_H < 128 else 8
            regime = "tile" if SLICES == 1 else "grid"
            plans.append(Plan(regime, SLICES, BLOCK_B, BLOCK_H, BLOCK_K, num_warps, 1, us))
    return plans


def _step_us(BLOCK_B: int, BLOCK_H: int, width: int, size: int, SLICES: int) -> float:
    macs = BLOCK_B * 4 * BLOCK_H * width
    clocks = max(macs / MACS_PER_CLOCK[size], 4 * BLOCK_H * width * size / SHARED_BYTES_PER_CLOCK)
    us = clocks / CLOCK_GHZ / 1e3 + CELL_US
    if SLICES > 1:
        us += BARRIER_US + BLOCK_B * width * size / L2_BYTES_PER_CLOCK / CLOCK_GHZ / 1e3
    return us


def _step(B: int, H: int, D: int, size: int, card: Card) -> Plan:
    BLOCK_B = min(max(16, triton.next_power_of_2(B)), 64)
    BLOCK_H = 16 if size == 4 else 32
    programs = triton.cdiv(H, BLOCK_H) * triton.cdiv(B, BLOCK_B) * D
    waves = triton.cdiv(programs, card.multiprocessors)
    macs = BLOCK_B * 4 * BLOCK_H * H
    bytes_read = (BLOCK_B + 4 * BLOCK_H) * H * size
    clocks = max(macs / MACS_PER_CLOCK[size], bytes_read / L2_BYTES_PER_CLOCK)
    us = LAUNCH_US + waves * clocks / CLOCK_GHZ / 1e3
    return Plan("step", 0, BLOCK_B, BLOCK_H, 32 if size == 4 else 64, 4, 3, us)
