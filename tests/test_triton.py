"""The Triton kernels, run by the interpreter on the CPU: every regime against the reference."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

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
from fusedlstm.backends.triton.plans import STEP_SHARED_BYTES, Card, candidates
from triton_backend import A100, H100, REGIMES, TF32X3_ROUNDINGS, layer_call, on_the_cpu, use  # noqa: F401
from triton_on_cpu import DeadLockError, OutOfBoundsError, RaceError, seeded

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# What every regime runs. The interpreter takes 10 ms for a step of a program, so they are small; thousands of
# steps are left to tests/test_gpu.py.
EVERYWHERE = [
    Case(1, 1, 3, 17),
    Case(2, 3, 5, 19, bias=False),
    Case(2, 17, 4, 33, ids=True, hx=False),
    Case(3, 5, 4, 17, bi=True, ids=True, packed="unsorted", resets=True),
    Case(33, 3, 4, 17, bi=True, packed="unsorted"),
]
WIDE = Case(2, 3, 4, 130)  # more than one chunk of the product, so more than one program
# What is the same for all regimes: the layer around them.
AROUND = [case for case in CASES if case.T <= 7 and case.H <= 33 and not case.proj and not case.resets]
RUNS = [
    *((regime, dtype, case) for regime in REGIMES for dtype in DTYPES[:2] for case in EVERYWHERE),
    *((regime, torch.float16, case) for regime in REGIMES for case in EVERYWHERE[:4]),
    *((regime, dtype, WIDE) for regime in REGIMES[1:] for dtype in DTYPES[:2]),
    *(("tile", torch.float32, case) for case in AROUND),
]


@pytest.mark.parametrize(("regime", "dtype", "case"), RUNS, ids=str)
def test_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, regime: str, dtype: torch.dtype, case: Case
) -> None:
    use(monkeypatch, regime)
    found = ours(case, dtype, "triton")
    assert_close(found, case, dtype, roundings=TF32X3_ROUNDINGS if dtype == torch.float32 else 1)
    if case.T > 7:
        return
    with seeded(7):
        again = ours(case, dtype, "triton")
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=f"{name} depends on the order of programs")


def test_every_regime_sees_every_option() -> None:
    asked: dict[str, Callable[[Case], object]] = {
        "T = 1": lambda case: case.T == 1,
        "T = 2": lambda case: case.T == 2,
        "T = 33, both directions, packed": lambda case: case.T == 33 and case.bi and case.packed,
        "odd B": lambda case: case.B % 2 and case.B > 1,
        "B = 1": lambda case: case.B == 1,
        "two tiles": lambda case: case.B > 16,
        "odd H": lambda case: case.H % 2,
        "no bias": lambda case: not case.bias,
        "ids": lambda case: case.ids,
        "both directions": lambda case: case.bi,
        "packed": lambda case: case.packed,
        "states of zero": lambda case: not case.hx,
        "resets": lambda case: case.resets,
    }
    for regime in REGIMES:
        for dtype in DTYPES:
            cases = [case for r, d, case in RUNS if (r, d) == (regime, dtype)]
            missing = [name for name, has in asked.items() if not any(map(has, cases))]
            assert missing == (["T = 33, both directions, packed"] if dtype == torch.float16 else [])
            for case in cases:
                plans = candidates(case.B, case.H, case.D, dtype, "tf32x3", H100)
                assert any(plan.regime == regime for plan in plans), f"{case} does not fit {regime}"


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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch finds an H100."""
    monkeypatch.setattr(triton, "DEVICES", {"cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return monkeypatch


def test_too_old_a_gpu_is_named(gpu: pytest.MonkeyPatch) -> None:
    assert fusedlstm.backends()["triton"] is None
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 8.0 (Ampere), got 7.5" in str(fusedlstm.backends()["triton"])


def test_too_little_shared_memory_is_named(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(triton, "_card", lambda device: Card(16, 47 << 10))
    assert "need 48 KiB of shared memory for a block, the GPU has 47" in str(fusedlstm.backends()["triton"])
    gpu.setattr(triton, "_card", lambda device: Card(16, 48 << 10))
    assert fusedlstm.backends()["triton"] is None


def test_the_step_regime_fits_where_it_is_let_in() -> None:
    for B in (1, 20, 40, 1000):
        for dtype in DTYPES:
            (plan,) = (
                p for p in candidates(B, 4096, 1, dtype, "tf32", Card(16, 48 << 10)) if p.regime == "step"
            )
            operands = (plan.BLOCK_B + 4 * plan.BLOCK_H) * plan.BLOCK_K * dtype.itemsize
            assert plan.num_stages * operands <= STEP_SHARED_BYTES


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"H": 23170, "P": 23170}, None),
        ({"H": 23171, "P": 23171}, "takes up to 23170 hidden units in 1 direction(s), got 23171"),
        ({"H": 16384, "P": 16384, "D": 2}, None),
        ({"H": 16385, "P": 16385, "D": 2}, "takes up to 16384 hidden units in 2 direction(s), got 16385"),
        ({"B": 16 * 65535}, None),
        ({"B": 16 * 65535 + 1}, "takes up to 1048560 sequences, got 1048561"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, int], why: str | None) -> None:
    assert why_not(replace(Spec("cpu", torch.bfloat16, 5, 2, 3, 8, 8), **changes), "triton") == why


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("sys.modules['triton'] = None", "triton cannot be imported, the kernels need triton 3.6 or newer"),
        ("import types; old = sys.modules['triton'] = types.ModuleType('triton'); old.__version__ = '3.5.1'",
         "triton is 3.5.1, the kernels need triton 3.6 or newer: pip install 'triton>=3.6'"),
    ],
)  # fmt: skip
def test_a_triton_that_is_missing_or_too_old_is_named_and_harms_nothing(code: str, why: str) -> None:
    program = f"import sys; {code}\nimport fusedlstm, torch\nprint(fusedlstm.backends()['triton'])\n"
    program += "fusedlstm.LSTM(3, 8)(torch.zeros(5, 2, 3))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"not available here: {why}")


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
