"""What the device can do, and in which state it is: products, copies, the L2 cache, clocks, cuDNN's path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from benchmarks.results import nvidia_smi
from benchmarks.shapes import TRAIN, Row
from fusedlstm import _C
from fusedlstm.charlm.settings import has_bfloat16
from fusedlstm.timing import Runner, once, seconds_of

DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2}  # as in csrc/recurrence.h
PRODUCT = 4096  # rows and columns of the matrices that tell what a GPU can do
COPIED_BYTES = 256 << 20  # more than caches hold


def multiplies(dtype: str, device: str) -> bool:
    """Whether the device multiplies the dtype natively; a CPU that does not takes torch minutes a pass."""
    return device == "cuda" or dtype != "bfloat16" or has_bfloat16()


@contextmanager
def products_as_cudnn() -> Iterator[None]:
    """On a GPU torch.mm may use TF32 where cuDNN's LSTM may."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class InputProducts:
    """The input products of a row's pass, by torch.mm into memory that is there.

    Forward x W_ih^T of every layer and direction; with a backward dW_ih, and dx of all layers but the first,
    which has one if the row needs it.
    """

    def __init__(self, row: Row, device: str) -> None:
        rows, gates = row.T * row.B, 4 * row.H

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, device=device).to(row.torch_dtype)

        made: dict[int, tuple[Tensor, ...]] = {}
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        dgates, out = some(rows, gates), some(rows, gates)
        for layer, width in enumerate(row.widths):
            if width not in made:
                made[width] = some(rows, width), some(rows, width), some(gates, width), some(gates, width)
            x, dx, w_ih, dw_ih = made[width]
            for _ in range(row.D):
                self.products.append((x, w_ih.t(), out))
                if row.mode == TRAIN:
                    self.products.append((dgates.t(), x, dw_ih))
                if row.mode == TRAIN and (layer or row.needs_dx):
                    self.products.append((dgates, w_ih, dx))

    def __call__(self) -> None:
        for a, b, out in self.products:
            torch.mm(a, b, out=out)

    @property
    def flops(self) -> int:
        return sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in self.products)


def flops_per_s(dtype: str, device: str, seconds: float) -> float:
    """Of the device's product alone: the engine's micro-kernel, or on a GPU a large torch.mm.

    Args:
        dtype: "float32", ...
        device: "cpu" or "cuda".
        seconds: for how long, on a CPU.
    """
    if device == "cpu":
        return _C.peak(DTYPES[dtype], torch.get_num_threads(), seconds)
    a = torch.randn(PRODUCT, PRODUCT, device=device).to(getattr(torch, dtype))
    return 2 * PRODUCT**3 / once(Runner(lambda: a @ a, products_as_cudnn), device)


def bytes_per_s(device: str) -> float:
    """Read and written by a copy of more than the caches hold."""
    source, target = _large(device)
    return 2 * COPIED_BYTES / seconds_of(lambda: target.copy_(source), device)


def floor(row: Row, flops_per_s: float, bytes_per_s: float) -> dict[str, float | str]:
    """The least time of a row's pass: its products at the ceiling or its bytes at the bandwidth."""
    ms = {"flops": 1e3 * row.flops / flops_per_s, "bytes": 1e3 * row.bytes / bytes_per_s}
    bound = max(ms, key=lambda by: ms[by])
    times = {f"{by}_ms": value for by, value in ms.items()}
    return {"ms": ms[bound], "bound": bound, "bytes": row.bytes, **times}


def cold_seconds(runners: Mapping[str, Runner], runs: int, device: str) -> dict[str, list[float]]:
    """Seconds of single runs in turns, each after other data have taken the caches."""
    found: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(runs):
        for name, runner in runners.items():
            flush(device)
            with runner.context():
                found[name].append(seconds_of(runner.run, device))
    return found


def flush(device: str) -> None:
    """Fills the caches with other data, and waits until it is done."""
    _large(device)[1].zero_()
    if device == "cuda":
        torch.cuda.synchronize()


def clock_mhz() -> int | None:
    """Of the GPU's multiprocessors, now."""
    found = nvidia_smi("clocks.sm")
    return int(found[0]) if found and found[0].isdigit() else None


def cudnn_path(row: Row, capability: tuple[int, int], multiprocessors: int) -> str:
    """Which of cuDNN's algorithms torch chooses (aten/src/ATen/native/cudnn/RNN.cpp of torch 2.11).

    Args:
        row: sizes, dtype and mode.
        capability: of the GPU, major and minor.
        multiprocessors: of the GPU.

    Returns:
        "persistent" or "standard"; both, where forward and backward differ.
    """
    sizes = row.L == 1 and row.D == 1 and row.H <= 1024 and row.H % 128 == 0 and row.I % 128 == 0
    large = row.dtype == "float16" and sizes and _persists(row, capability, multiprocessors)
    small = {
        "forward": row.H <= 192 and row.dtype != "float64" and capability >= (6, 0),
        "backward": row.H <= 128 and row.dtype != "float64" and capability >= (6, 0),
    }
    if row.mode != TRAIN:
        del small["backward"]
    chosen = {part: "persistent" if large or small[part] else "standard" for part in small}
    if len(set(chosen.values())) == 1:
        return chosen["forward"]
    return ", ".join(f"{path} {part}" for part, path in chosen.items())


def _persists(row: Row, capability: tuple[int, int], multiprocessors: int) -> bool:
    major, minor = capability
    if major >= 8:
        return multiprocessors >= 98 and minor != 6 and row.B % 8 == 0 and row.B <= 128
    even = (row.B % 16 == 0 and row.B not in (80, 112)) or row.B == 8
    long = any(steps <= row.T and most >= row.B for steps, most in ((40, 128), (20, 96), (10, 32)))
    return major == 7 and minor != 5 and even and long


@cache
def _large(device: str) -> tuple[Tensor, Tensor]:
    # Ones: pages of zeros that nobody wrote would all be the same one.
    source, target = (torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device) for _ in range(2))
    return source, target
