"""Every GPU kernel of our own at small and odd sizes, forward and backward: compute-sanitizer watches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any
from unittest import mock

import torch

import fusedlstm

NOT_OURS_ON_A_GPU = ("cpu", "torch", "eager")
# T, B, I, H, layers, both directions, dtype, lengths that differ: all odd; several programs each way.
SHAPES = (
    (4, 17, 5, 33, 2, True, torch.bfloat16, False),
    (3, 20, 12, 160, 1, False, torch.float32, True),
)
REGIMES = {"cuda": ("block", "cluster", "grid"), "triton": ("tile", "grid", "step")}


@contextmanager
def regime(backend: str, name: str) -> Iterator[None]:
    """Lets one regime of a backend serve what it can, however slow its plan says that it is."""
    with mock.patch.object(*CHOICES[backend](name)):
        yield


def _of_triton(name: str) -> tuple[ModuleType, str, Callable[..., Any]]:
    from fusedlstm.backends import triton

    def choose(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device, way: str) -> Any:
        plans = triton._key(B, H, D, dtype, device, way).plans()
        return next((plan for plan in plans if plan.regime == name), plans[0])

    return triton, "choose", choose


def _of_cuda(name: str) -> tuple[ModuleType, str, Callable[..., Any]]:
    from fusedlstm.backends import cuda

    every = cuda.plans

    def plans(*call: Any) -> list[Any]:
        return [plan for plan in every(*call) if plan.kernel.regime == name] or every(*call)

    return cuda, "plans", plans


# Of each backend with regimes: which function chooses, and one that chooses this regime.
CHOICES = {"cuda": _of_cuda, "triton": _of_triton}


def run(backend: str, shape: tuple[Any, ...], device: str) -> None:
    """One pass forward and backward.

    Raises:
        AssertionError: a result is not finite.
    """
    T, B, I, H, L, both, dtype, packed = shape  # noqa: E741
    lstm = fusedlstm.LSTM(I, H, L, bidirectional=both, backend=backend, device=device, dtype=dtype)
    x = torch.randn(T, B, I, device=device, dtype=dtype, requires_grad=True)
    lengths = [T - b * T // B for b in range(B)]
    y, _ = lstm(torch.nn.utils.rnn.pack_padded_sequence(x, lengths) if packed else x)
    data = y.data if packed else y
    data.sum().backward()
    for tensor in (data, x.grad, *(weight.grad for weight in lstm.parameters())):
        assert tensor is not None and tensor.isfinite().all()


def main(device: str = "cuda") -> None:
    """Runs all of them and prints what it ran.

    Args:
        device: where.
    """
    found = fusedlstm.backends()
    usable = [name for name, why in found.items() if why is None and name not in NOT_OURS_ON_A_GPU]
    if not usable:
        raise SystemExit(f"no backend of ours can run here: {found}")
    for backend, shape in itertools.product(usable, SHAPES):
        for name in REGIMES.get(backend, ("",)):
            with regime(backend, name) if name else nullcontext():
                run(backend, shape, device)
            print(f"passed: {backend} {name} {shape}", flush=True)


if __name__ == "__main__":
    main()
