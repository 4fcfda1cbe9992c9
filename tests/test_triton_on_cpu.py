"""The mended interpreter itself: its arithmetic against torch, and each kind of error that it must catch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels run on the GPU here", allow_module_level=True)

import triton
import triton.language as tl
from triton.language.extra import libdevice

import triton_on_cpu

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


@triton.jit
def cast_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty))


@triton.jit
def elementwise_kernel(a_ptr, b_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(a_ptr + i), tl.load(b_ptr + i)
    tl.store(y_ptr + i, a + b)
    tl.store(y_ptr + N + i, a * b)
    tl.store(y_ptr + 2 * N + i, -a)
    tl.store(y_ptr + 3 * N + i, tl.where(a < b, a, b))


@triton.jit
def functions_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(x_ptr + i)
    tl.store(y_ptr + i, libdevice.tanh(x))
    tl.store(y_ptr + N + i, tl.sigmoid(x))
    tl.store(y_ptr + 2 * N + i, tl.exp(x))


@triton.jit
def dot_kernel(a_ptr, b_ptr, y_ptr, N: tl.constexpr, PRECISION: tl.constexpr):
    i = tl.arange(0, N)
    square = i[:, None] * N + i[None, :]
    y = tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square), input_precision=PRECISION)
    tl.store(y_ptr + square, y.to(y_ptr.dtype.element_ty))


@triton.jit
def shapes_kernel(x_ptr, y_ptr, n, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.split(tl.reshape(tl.load(x_ptr + tl.arange(0, 2 * N)), (N, 2)))
    back = tl.reshape(tl.trans(tl.permute(tl.join(a, b), (1, 0))), (2 * N,))
    tl.store(y_ptr + tl.arange(0, 2 * N), back)
    for k in range(n):
        for j in tl.static_range(2):
            tl.store(y_ptr + (2 + 2 * k + j) * N + i, a if j == 0 else b)


@triton.jit
def copy_kernel(x_ptr, y_ptr, first, count, N: tl.constexpr):
    i = first + tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < count, other=0.0), mask=i < count)


@triton.jit
def keep_kernel(table_ptr, x_ptr, y_ptr):
    tl.store(table_ptr, x_ptr.to(tl.int64))
    tl.store(table_ptr + 1, y_ptr.to(tl.int64))


@triton.jit
def copy_kept_kernel(table_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    x_ptr = tl.multiple_of(tl.load(table_ptr).to(tl.pointer_type(tl.float32)), 16)
    tl.store(tl.load(table_ptr + 1).to(tl.pointer_type(tl.float32)) + i, tl.load(x_ptr + i))


@triton.jit
def undefined_kernel(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < 1))


@triton.jit
def neighbour_kernel(x_ptr):
    """Each program reads what the one before it writes, and nothing orders them."""
    p = tl.program_id(0)
    tl.store(x_ptr + p + 1, tl.load(x_ptr + p))


@triton.jit
def rotate_kernel(
    x_ptr, barrier_ptr, STEPS: tl.constexpr, FEWER: tl.constexpr, WAIT: tl.constexpr, BUFFERS: tl.constexpr,
    RELEASE: tl.constexpr, ACQUIRE: tl.constexpr, MEET: tl.constexpr,
):  # fmt: skip
    """x[b, p] of the next step is x[b, p + 1] of the last one plus 1; programs meet after every step."""
    p, P = tl.program_id(0), tl.num_programs(0)
    for s in range(STEPS):
        x = tl.load(x_ptr + (s % BUFFERS) * P + (p + 1) % P)
        tl.store(x_ptr + ((s + 1) % BUFFERS) * P + p, x + 1)
        if MEET:
            tl.debug_barrier()
        tl.atomic_add(barrier_ptr, 1, sem=RELEASE)
        if WAIT:
            while tl.atomic_add(barrier_ptr, 0, sem=ACQUIRE) < (s + 1) * P - FEWER:
                pass
        if MEET:
            tl.debug_barrier()


CORRECT = {
    "STEPS": 5, "FEWER": 0, "WAIT": True, "BUFFERS": 2, "RELEASE": "release", "ACQUIRE": "acquire",
    "MEET": True,
}  # fmt: skip


def rotate(P: int, seed: int, together: bool = True, **changes: object) -> torch.Tensor:
    x = torch.zeros(2, P)
    x[0] = torch.arange(P)
    options = {**CORRECT, **changes}
    with triton_on_cpu.seeded(seed):
        rotate_kernel[(P,)](x, torch.zeros(1, dtype=torch.int32), **options, launch_cooperative_grid=together)
    return x


def difficult(dtype: torch.dtype) -> torch.Tensor:
    """Ties, subnormals, infinities and NaN among many exponents."""
    x = torch.randn(2048) * torch.exp2(torch.randint(-40, 40, (2048,)).float())
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-8, 65520.0, 3.39e38])
    odd = torch.tensor(
        [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, 2**-24, 2**-25, 3 * 2**-26]
    )
    x[: len(ties)], x[-len(odd) :] = ties, odd
    return x.to(dtype)


@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("of", FLOATS)
def test_casts_round_as_torch_does(of: torch.dtype, to: torch.dtype) -> None:
    x = difficult(of)
    y = torch.empty(2048, dtype=to)
    cast_kernel[(1,)](x, y, N=2048)
    torch.testing.assert_close(y, x.to(to), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(y.signbit()[~y.isnan()], x.signbit()[~y.isnan()])


def test_integers_become_bfloat16() -> None:
    x = torch.arange(-1024, 1024, dtype=torch.int32)
    y = torch.empty(2048, dtype=torch.bfloat16)
    cast_kernel[(1,)](x, y, N=2048)
    assert torch.equal(y, x.bfloat16())


@pytest.mark.parametrize("dtype", FLOATS)
def test_elementwise_rounds_once(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 256).to(dtype)
    y = torch.empty(4, 256, dtype=dtype)
    elementwise_kernel[(1,)](a, b, y, N=256)
    assert torch.equal(y, torch.stack([a + b, a * b, -a, torch.minimum(a, b)]))


def test_functions_are_as_accurate_as_float32() -> None:
    x = torch.linspace(-30, 30, 512)
    y = torch.empty(3, 512)
    functions_kernel[(1,)](x, y, N=512)
    exact = x.double()
    torch.testing.assert_close(
        y.double(), torch.stack([exact.tanh(), exact.sigmoid(), exact.exp()]), rtol=1e-6, atol=0
    )


def test_libdevice_takes_only_what_a_gpu_takes() -> None:
    x = torch.zeros(16, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="libdevice takes float32 and float64"):
        functions_kernel[(1,)](x, torch.empty(48, dtype=torch.bfloat16), N=16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dot_is_exact_where_sums_are(dtype: torch.dtype) -> None:
    a, b = torch.randint(-8, 8, (2, 32, 32)).to(dtype)
    y = torch.empty(32, 32)
    dot_kernel[(1,)](a, b, y, N=32, PRECISION="ieee")
    assert torch.equal(y, a.float() @ b.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dot_adds_up_in_float32(dtype: torch.dtype) -> None:
    a, b = torch.randn(2, 64, 64).to(dtype)
    y = torch.empty(64, 64)
    dot_kernel[(1,)](a, b, y, N=64, PRECISION="ieee")
    torch.testing.assert_close(y.double(), a.double() @ b.double(), rtol=0, atol=3e-5)
    narrow = torch.empty(64, 64, dtype=dtype)
    dot_kernel[(1,)](a, b, narrow, N=64, PRECISION="ieee")
    assert torch.equal(narrow, y.to(dtype))


def test_input_precision_is_obeyed() -> None:
    a, b = torch.randn(2, 64, 64)
    errors = {}
    for precision in ("ieee", "tf32x3", "tf32"):
        y = torch.empty(64, 64)
        dot_kernel[(1,)](a, b, y, N=64, PRECISION=precision)
        errors[precision] = (y.double() - a.double() @ b.double()).abs().max().item()
    assert errors["ieee"] < 3e-5 and errors["tf32x3"] < 3e-5
    assert 1e-3 < errors["tf32"] < 5e-2


def test_shapes_and_loops() -> None:
    x = torch.randn(32)
    y = torch.empty(6, 16)
    shapes_kernel[(1,)](x, y, 2, N=16)
    assert torch.equal(y[:2].view(-1), x)
    assert torch.equal(y[2:], x.view(16, 2).t().repeat(2, 1))


def test_a_masked_load_without_other_is_undefined() -> None:
    y = torch.zeros(4)
    undefined_kernel[(1,)](torch.ones(4), y, N=4)
    assert y[0] == 1 and y[1:].isnan().all()


def test_masked_accesses_may_lie_outside() -> None:
    y = torch.zeros(5)
    copy_kernel[(1,)](torch.ones(5), y, 0, 5, N=16)
    assert y.sum() == 5


@pytest.mark.parametrize(
    ("first", "count", "element"), [(0, 6, 5), (-1, 5, -1), (5, 6, 5), (1 << 30, 1 << 31, 1 << 30)]
)
def test_an_access_outside_of_its_tensor_is_caught(first: int, count: int, element: int) -> None:
    memory = torch.ones(3, 5)  # what lies beside the tensor is memory of the process
    with pytest.raises(triton_on_cpu.OutOfBoundsError, match=rf"load of x_ptr\[{element}\]"):
        copy_kernel[(1,)](memory[1], torch.zeros(16), first, count, N=16)
    with pytest.raises(triton_on_cpu.OutOfBoundsError, match=r"store of y_ptr\[5\]"):
        copy_kernel[(1,)](torch.ones(16), memory[1], 0, 6, N=16)


def test_an_unknown_launch_option_is_refused() -> None:
    with pytest.raises(TypeError, match="copy_kernel has no parameter BLOCK"):
        copy_kernel[(1,)](torch.ones(5), torch.ones(5), 0, 5, N=16, BLOCK=1)


def test_programs_that_depend_on_each_other_without_order_are_caught() -> None:
    for seed in range(20):
        with (
            triton_on_cpu.seeded(seed),
            pytest.raises(triton_on_cpu.RaceError, match="nothing orders the two"),
        ):
            neighbour_kernel[(4,)](torch.zeros(5))


def test_a_barrier_orders_programs() -> None:
    results = [rotate(5, seed) for seed in range(20)]
    assert torch.equal(results[0][1], torch.arange(5.0).roll(-5) + 5)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    "wrong",
    [
        {"FEWER": 1},
        {"WAIT": False},
        {"BUFFERS": 1},
        {"RELEASE": "relaxed"},
        {"ACQUIRE": "relaxed"},
        {"MEET": False},
    ],
    ids=lambda wrong: "-".join(wrong),
)  # fmt: skip
def test_a_wrong_barrier_is_caught_by_every_seed(wrong: dict[str, object]) -> None:
    for seed in range(20):
        with pytest.raises(triton_on_cpu.RaceError):
            rotate(5, seed, **wrong)


def test_a_dead_lock_is_reported_with_every_program() -> None:
    line = line_of(rotate_kernel.fn, "while tl.atomic_add")
    with pytest.raises(triton_on_cpu.DeadLockError) as error:
        rotate(3, 0, FEWER=-1)
    message = str(error.value)
    for program in range(3):
        assert f"program {program} at test_triton_on_cpu.py:{line} in rotate_kernel" in message
    assert message.count("waiting for barrier_ptr[0] to change from 3") == 3


def test_a_barrier_needs_a_cooperative_launch() -> None:
    with pytest.raises(triton_on_cpu.DeadLockError, match="launch_cooperative_grid=True"):
        rotate(3, 0, together=False)


def line_of(function: Callable, text: str) -> int:
    lines, first = inspect.getsourcelines(function)
    return first + next(k for k, line in enumerate(lines) if text in line)


def test_a_kept_pointer_is_checked_like_an_argument() -> None:
    table, x, y = torch.zeros(2, dtype=torch.int64), torch.randn(8), torch.zeros(8)
    keep_kernel[(1,)](table, x, y)
    assert table.tolist() == [x.data_ptr(), y.data_ptr()]
    copy_kept_kernel[(1,)](table, N=8)
    assert torch.equal(x, y)
    with pytest.raises(triton_on_cpu.OutOfBoundsError, match="which spans 8"):
        copy_kept_kernel[(1,)](table, N=16)
    with pytest.raises(triton_on_cpu.RaceError):
        copy_kept_kernel[(2,)](table, N=8)
    del x
    with pytest.raises(triton_on_cpu.OutOfBoundsError, match="one that is gone"):
        copy_kept_kernel[(1,)](table, N=8)
