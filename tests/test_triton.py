"""The Triton kernels, run by the interpreter on the CPU: every regime against the reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

import fusedlstm
from cases import CASES, Case, assert_close, exact, ours
from fusedlstm.backends import Spec, accumulation, why_not

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/test_gpu.py runs the same cases on it", allow_module_level=True)

import triton.language as tl
from triton import jit

from fusedlstm.backends import eager, triton
from fusedlstm.backends.triton import kernels, layer
from fusedlstm.backends.triton.plans import Card, Plan, candidates
from triton_on_cpu import DeadLockError, OutOfBoundsError, RaceError, seeded

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

    def choose(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device) -> Plan:
        plans = candidates(B, H, D, dtype, triton._precision(dtype), H100)
        return next(plan for plan in plans if plan.regime == regime)

    monkeypatch.setattr(triton, "choose", choose)


def fits(case: Case, dtype: torch.dtype, regime: str) -> bool:
    plans = candidates(case.B, case.H, case.D, dtype, "tf32x3", H100)
    return not case.proj and any(plan.regime == regime for plan in plans)


def chosen(dtypes: Sequence[torch.dtype], cases: Sequence[Case]) -> list[tuple[str, torch.dtype, Case]]:
    # The interpreter takes minutes for long sequences: those are left to one regime, and a few to the others.
    return [
        (regime, dtype, case)
        for regime in REGIMES
        for dtype in dtypes
        for case in cases
        if fits(case, dtype, regime) and (case.T <= 7 or regime == "tile" or case.H == 100)
    ]


HALF = [case for case in CASES if case.T in (2, 33) or case.bi][:9]
HALF.append(Case(7, 5, 12, 16, L=2, bi=True, ids=True, resets=True))


@pytest.mark.parametrize(
    ("regime", "dtype", "case"),
    chosen([torch.float32], CASES) + chosen([torch.bfloat16, torch.float16], HALF),
    ids=str,
)
def test_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, regime: str, dtype: torch.dtype, case: Case
) -> None:
    use(monkeypatch, regime)
    found = ours(case, dtype, "triton")
    assert_close(found, case, dtype, roundings=TF32X3_ROUNDINGS if dtype == torch.float32 else 1)
    with seeded(7):
        again = ours(case, dtype, "triton")
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=f"{name} depends on the order of programs")


def layer_call(dtype: torch.dtype = torch.float32, H: int = 40, packed: bool = False) -> tuple:
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    weights = [normal(4 * H, 5) / 4, normal(4 * H, H) / 6, normal(4 * H), normal(4 * H)]
    return normal(9 if packed else 12, 5), sizes, normal(1, 3, H), normal(1, 3, H), weights


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("packed", [False, True])
def test_inference_saves_nothing_and_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, regime: str, packed: bool
) -> None:
    use(monkeypatch, regime)
    call = layer_call(torch.bfloat16, packed=packed)
    saved, plain = triton.layer_forward(*call, True), triton.layer_forward(*call, False)
    for one, other in zip(saved[:3], plain[:3], strict=True):
        assert torch.equal(one, other)
    assert plain[3].numel() == plain[4].numel() == 0
    assert saved[3].dtype == accumulation(torch.bfloat16) and saved[4].shape == (1, len(call[0]), 160)


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_that_are_none_count_as_zeros(monkeypatch: pytest.MonkeyPatch, regime: str) -> None:
    use(monkeypatch, regime)
    call = layer_call()
    y, h_n, c_n, c, gates = triton.layer_forward(*call, True)
    zeros = torch.zeros_like(y), torch.zeros_like(h_n), torch.zeros_like(c_n)
    dh_n = torch.randn_like(h_n)
    given = triton.layer_backward(zeros[0], dh_n, zeros[2], *call, y, c, gates, True, True)
    left_out = triton.layer_backward(None, dh_n, None, *call, y, c, gates, True, True)
    for one, other in zip((*given[:3], *given[3]), (*left_out[:3], *left_out[3]), strict=True):
        torch.testing.assert_close(one, other)
    nothing = triton.layer_backward(None, dh_n, None, *call, y, c, gates, False, False)
    assert nothing[0].numel() == 0 and all(w.numel() == 0 for w in nothing[3])


def test_wide_ids_sum_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tile")
    case = Case(7, 5, 200, 16, ids=True)  # more ids than 4H: no one-hot product
    assert_close(ours(case, torch.float32, "triton"), case, torch.float32, roundings=TF32X3_ROUNDINGS)


def test_tf32_is_used_when_torch_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tile")
    case = Case(7, 5, 9, 33)
    truth = exact(case, torch.float32)["y"]
    errors = []
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        errors.append(np.abs(ours(case, torch.float32, "triton")["y"] - truth).max())
    assert errors[0] < 2e-6 < 1e-5 < errors[1] < 5e-3


@jit
def _no_wait(barrier_ptr, count):  # type: ignore[no-untyped-def]
    pass


@jit
def _wait_for_one_less(barrier_ptr, count):  # type: ignore[no-untyped-def]
    while tl.atomic_add(barrier_ptr, 0, sem="acquire", scope="gpu") < count - 1:
        pass
    tl.debug_barrier()


@jit
def _arrive_relaxed(barrier_ptr):  # type: ignore[no-untyped-def]
    tl.debug_barrier()
    tl.atomic_add(barrier_ptr, 1, sem="relaxed", scope="gpu")


BROKEN = {
    "no wait": ("_wait", _no_wait),
    "one too few": ("_wait", _wait_for_one_less),
    "no release": ("_arrive", _arrive_relaxed),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_barrier_is_seen(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    use(monkeypatch, "grid")
    call = layer_call()
    y, _, _, c, gates = eager.layer_forward(*call, True)
    monkeypatch.setattr(kernels, *BROKEN[fault])
    for run in (
        lambda: triton.layer_forward(*call, True),
        lambda: triton.layer_backward(y, None, None, *call, y, c, gates, True, True),
    ):
        caught = 0
        for seed in range(8):
            with seeded(seed), contextlib.suppress(RaceError, DeadLockError):
                run()
                continue
            caught += 1
        assert caught > 0


def test_memory_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "step")
    x, sizes, h0, c0, weights = layer_call()
    monkeypatch.setattr(layer, "_offsets", lambda *_: (torch.empty(1, dtype=torch.int64), 5))  # T is 4
    with pytest.raises(OutOfBoundsError):
        triton.layer_forward(x, sizes, h0, c0, weights, True)


@pytest.mark.parametrize(
    "name", ["lstm_fwd_kernel", "lstm_bwd_kernel", "lstm_fwd_step_kernel", "lstm_bwd_step_kernel"]
)
def test_a_new_length_or_batch_compiles_nothing_new(name: str) -> None:
    kernel = getattr(kernels, name)
    sizes = {"T", "B", "N"} | ({"s"} if "step" in name else set())
    constants = {arg for arg, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
    assert not sizes & constants and "H" in constants
    assert set(kernel.kwargs["do_not_specialize"]) == sizes


def test_supports_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec("cpu", torch.float32, 5, 2, 3, 8, 8)
    assert why_not(spec, "triton") is None
    assert "not torch.float64" in str(why_not(Spec("cpu", torch.float64, 5, 2, 3, 8, 8), "triton"))
    assert "projection" in str(why_not(Spec("cpu", torch.float32, 5, 2, 3, 8, 4), "triton"))
    monkeypatch.setattr(triton, "DEVICES", {"cuda"})
    assert "torch finds no GPU" in str(why_not(spec, "triton"))
    assert "torch finds no GPU" in str(fusedlstm.backends()["triton"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "the tensors are on cpu" in str(why_not(spec, "triton"))
    with pytest.raises(ValueError, match="tensors are on cpu"):
        fusedlstm.LSTM(3, 8, backend="triton")(torch.randn(5, 2, 3))


def test_too_old_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "DEVICES", {"cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 8.0 (Ampere), got 7.5" in str(fusedlstm.backends()["triton"])


def test_plans_stay_on_the_card() -> None:
    for card in (H100, A100):
        for B, H, D in [(1, 5, 1), (16, 64, 2), (100, 512, 1), (16, 768, 1), (64, 1024, 1), (3, 3000, 2)]:
            for dtype, precision in [
                (torch.float32, "tf32"),
                (torch.float32, "tf32x3"),
                (torch.float16, "ieee"),
            ]:
                plans = candidates(B, H, D, dtype, precision, card)
                assert plans[-1].step_us >= plans[0].step_us > 0
                assert any(plan.regime == "step" for plan in plans)
                for plan in plans:
                    slices, tiles = -(-H // plan.BLOCK_H), -(-B // plan.BLOCK_B)
                    if plan.regime == "grid":
                        assert slices == plan.SLICES and slices * tiles * D <= card.multiprocessors
                    if plan.regime != "step":
                        width = -(-H // plan.BLOCK_K) * plan.BLOCK_K
                        assert 4 * plan.BLOCK_H * width * dtype.itemsize < card.shared_bytes
