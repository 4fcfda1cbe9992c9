"""The kernels of a step as a CUDA graph holds them.

A captured launch keeps its arguments for ever, so these have two that never change: a table on the device,
from which they read all that a call brings along, and their own place k in the graph. The table, in int64:

    T, B, N, rows of gx before direction 1, launches done, addresses as the step kernel orders its arguments

The arithmetic is that of kernels.py, and nothing is copied: a graph works on the tensors of the call.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import lstm_bwd_step_kernel, lstm_fwd_step_kernel

POINTERS = 11
TABLE = 5 + POINTERS


@triton.jit(do_not_specialize=["T", "B", "N", "gx_rows"])
def aim_kernel(
    table_ptr, p0_ptr, p1_ptr, p2_ptr, p3_ptr, p4_ptr, p5_ptr, p6_ptr, p7_ptr, p8_ptr, p9_ptr, p10_ptr,
    T, B, N, gx_rows,
):  # fmt: skip
    """Writes the table of a call."""
    tl.store(table_ptr, T)
    tl.store(table_ptr + 1, B)
    tl.store(table_ptr + 2, N)
    tl.store(table_ptr + 3, gx_rows)
    tl.store(table_ptr + 4, 0)
    tl.store(table_ptr + 5, p0_ptr.to(tl.int64))
    tl.store(table_ptr + 6, p1_ptr.to(tl.int64))
    tl.store(table_ptr + 7, p2_ptr.to(tl.int64))
    tl.store(table_ptr + 8, p3_ptr.to(tl.int64))
    tl.store(table_ptr + 9, p4_ptr.to(tl.int64))
    tl.store(table_ptr + 10, p5_ptr.to(tl.int64))
    tl.store(table_ptr + 11, p6_ptr.to(tl.int64))
    tl.store(table_ptr + 12, p7_ptr.to(tl.int64))
    tl.store(table_ptr + 13, p8_ptr.to(tl.int64))
    tl.store(table_ptr + 14, p9_ptr.to(tl.int64))
    tl.store(table_ptr + 15, p10_ptr.to(tl.int64))


@triton.jit
def advance_kernel(table_ptr, LAUNCHES: tl.constexpr):
    """Ends a graph: the next replay goes on where this one ended."""
    tl.store(table_ptr + 4, tl.load(table_ptr + 4) + LAUNCHES)


@triton.jit
def _sizes(table_ptr, k):
    """T, B, N, rows of gx and how many launches came before this one."""
    return (
        tl.load(table_ptr).to(tl.int32),
        tl.load(table_ptr + 1).to(tl.int32),
        tl.load(table_ptr + 2),
        tl.load(table_ptr + 3),
        tl.load(table_ptr + 4).to(tl.int32) + k,
    )


@triton.jit
def _pointer(table_ptr, n: tl.constexpr, DTYPE: tl.constexpr):
    """The n-th tensor; only those that start at a multiple of 16 bytes get into a table."""
    return tl.multiple_of(tl.load(table_ptr + 5 + n).to(tl.pointer_type(DTYPE)), 16)


@triton.jit(do_not_specialize=["k"])
def lstm_fwd_graph_kernel(
    table_ptr, k, DTYPE: tl.constexpr,
    H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr, IDS: tl.constexpr,
    BIAS: tl.constexpr, PACKED: tl.constexpr, FRESH: tl.constexpr, SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    T, B, N, gx_rows, done = _sizes(table_ptr, k)
    lstm_fwd_step_kernel(
        _pointer(table_ptr, 0, DTYPE), _pointer(table_ptr, 1, tl.int64), _pointer(table_ptr, 2, tl.float32),
        _pointer(table_ptr, 3, DTYPE), _pointer(table_ptr, 4, DTYPE), _pointer(table_ptr, 5, tl.float32),
        _pointer(table_ptr, 6, tl.int64), _pointer(table_ptr, 7, tl.uint8), _pointer(table_ptr, 8, DTYPE),
        _pointer(table_ptr, 9, tl.float32), _pointer(table_ptr, 10, DTYPE),
        done, T, B, N, gx_rows * (4 * H),
        H, BLOCK_B, BLOCK_H, BLOCK_K, IDS, BIAS, PACKED, FRESH, SAVE, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["k"])
def lstm_bwd_graph_kernel(
    table_ptr, k, DTYPE: tl.constexpr,
    H: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PACKED: tl.constexpr, FRESH: tl.constexpr, DY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    T, B, N, _, done = _sizes(table_ptr, k)
    lstm_bwd_step_kernel(
        _pointer(table_ptr, 0, DTYPE), _pointer(table_ptr, 1, tl.float32), _pointer(table_ptr, 2, tl.float32),
        _pointer(table_ptr, 3, DTYPE), _pointer(table_ptr, 4, tl.float32), _pointer(table_ptr, 5, DTYPE),
        _pointer(table_ptr, 6, DTYPE), _pointer(table_ptr, 7, tl.int64), _pointer(table_ptr, 8, tl.uint8),
        _pointer(table_ptr, 9, DTYPE),
        T - 1 - done, T, B, N,
        H, BLOCK_B, BLOCK_H, BLOCK_K, PACKED, FRESH, DY, PRECISION,
    )  # fmt: skip
