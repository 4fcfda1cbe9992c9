"""Ids in the Triton kernels, or before: the kernel reads rows of W_ih^T itself, or gx, gathered for it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from fusedlstm.backends import products, triton
from fusedlstm.backends.triton import layer

TIMES = 15
SHAPES = (  # T, B, ids, H
    (100, 100, 96, 512),
    (100, 16, 96, 128),
    (100, 64, 50_000, 512),
)


def ways(
    T: int, B: int, ids: int, H: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Runs of one layer's forward, by name; both give the same bits."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    x = torch.randint(ids, (T * B,), device=device)
    weights = [normal(4 * H, ids), normal(4 * H, H) / H**0.5, normal(4 * H), normal(4 * H)]
    state = torch.zeros(1, B, H, dtype=dtype, device=device)
    plan = triton.choose(B, H, 1, dtype, x.device, "forward")
    recurrence = partial(layer.forward, plan, triton._precision(dtype))
    rest = None, state, state, weights, True

    def gather(_: Tensor, w: Tensor, out: Tensor) -> Tensor:
        return torch.index_select(w.contiguous(), 0, x, out=out)

    def gathered() -> tuple[Tensor, ...]:
        with mock.patch.object(torch, "mm", gather):  # where the product of a dense input is made
            return products.forward(recurrence, state.new_empty(T * B, ids), *rest)

    return {"kernel": lambda: products.forward(recurrence, x, *rest), "gathered": gathered}


def time_us(run: Callable[[], tuple[Tensor, ...]]) -> float:
    """Microseconds of a run, the median of some."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found = []
    for _ in range(TIMES):
        torch.cuda._sleep(500_000)  # launches queue up meanwhile, so that the host's time is not counted
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(1e3 * begin.elapsed_time(end))
    return statistics.median(found)


def main() -> None:
    """Prints a line of JSON for each way and shape."""
    for shape in SHAPES:
        runs = ways(*shape, torch.bfloat16, "cuda")
        for one, other in zip(runs["kernel"](), runs["gathered"](), strict=True):
            assert torch.equal(one, other), f"the two ways differ at {shape}"
        for name, run in runs.items():
            T, B, ids, H = shape
            figure = {"name": f"triton_ids_{name}_{B}_{ids}_{H}", "us": time_us(run) / T}
            print(json.dumps(figure | {"T": T, "B": B, "ids": ids, "H": H}), flush=True)


if __name__ == "__main__":
    main()
