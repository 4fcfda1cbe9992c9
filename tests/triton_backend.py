"""The Triton backend on CPU tensors: what its tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import fusedlstm
import triton_on_cpu  # noqa: F401, since it mends the interpreter
from fusedlstm.backends import triton
from fusedlstm.backends.triton.plans import Card, Plan, candidates

H100, A100 = Card(132, 227 << 10), Card(108, 163 << 10)
REGIMES = ["tile", "grid", "step"]
# Three TF32 products leave out the one of both low parts, and cut a number after 21 or 22 bits.
TF32X3_ROUNDINGS = 8


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels take CPU tensors as if an H100 had them; float32 is exact, as torch's on a CPU."""
    monkeypatch.setattr(triton, "DEVICES", {"cpu"})
    monkeypatch.setattr(triton, "_card", lambda device: H100)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fusedlstm.functional._resolve_cached.cache_clear()
    yield
    fusedlstm.functional._resolve_cached.cache_clear()


def use(monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    """Lets one regime serve all calls."""

    def choose(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device, way: str) -> Plan:
        plans = candidates(B, H, D, dtype, triton._precision(dtype), H100)
        return next(plan for plan in plans if plan.regime == regime)

    monkeypatch.setattr(triton, "choose", choose)


def layer_call(dtype: torch.dtype = torch.float32, H: int = 40, packed: bool = False, T: int = 4) -> tuple:
    """Arguments of layer_forward but for save: one direction of three sequences."""
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    sizes = torch.tensor([3] * (T - 2) + [2, 1]) if packed else None
    weights = [normal(4 * H, 5) / 4, normal(4 * H, H) / 6, normal(4 * H), normal(4 * H)]
    N = int(sizes.sum()) if packed else 3 * T
    return normal(N, 5), sizes, normal(1, 3, H), normal(1, 3, H), weights
