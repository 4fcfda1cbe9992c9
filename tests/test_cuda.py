"""The CUDA kernels, run by the shim on the CPU: every regime, kernel and cut against the reference."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import cuda_on_cpu
import fusedlstm
from cases import CASES, Case, Results, assert_close, exact, ours
from fusedlstm.backends import Spec, accumulation, why_not

if reason := cuda_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)

REGIMES = ["block", "cluster", "grid"]
PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32,
              "tf32x3": torch.float32}  # fmt: skip
# Three TF32 products leave out the one of both low parts; TF32 itself has 13 bits less, in both operands.
ROUNDINGS = {"bfloat16": 1, "float16": 1, "tf32": 2 << 13, "tf32x3": 8}
CPU = torch.device("cpu")
SEEDS = (0, 1, 2)  # in turns, in no order with as few blocks at once as may be, in no order with all


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return cuda_on_cpu.build_module()


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Iterator[ModuleType]:
    """The backend, whose kernels take CPU tensors as if an H100 had them; float32 is exact, as torch's."""
    backend = cuda_on_cpu.install(monkeypatch, module)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    fusedlstm.functional._resolve_cached.cache_clear()
    yield backend
    module.shim.shim_seed(0)
    fusedlstm.functional._resolve_cached.cache_clear()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> Callable[[str], None]:
    """Lets one regime serve all calls."""
    every = cuda._plans

    def only(regime: str) -> None:
        monkeypatch.setattr(cuda, "_plans", lambda *a: [p for p in every(*a) if p.kernel.regime == regime])

    return only


def has_plan(regime: str, dtype: torch.dtype, case: Case) -> bool:
    """A block has few hidden units, in float32 only if they cut the backward's K evenly; others are slow."""
    in_a_block = case.H <= 64 and not (dtype == torch.float32 and case.H == 33)
    return not case.proj and (in_a_block if regime == "block" else case.T <= 33)


def chosen() -> list[tuple[str, torch.dtype, Case]]:
    half = [case for case in CASES if case.T in (2, 33) or case.bi]
    half.append(Case(7, 5, 12, 16, L=2, bi=True, ids=True, resets=True))
    return [
        (regime, dtype, case)
        for regime in REGIMES
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for case in (CASES if dtype == torch.float32 else half)
        if has_plan(regime, dtype, case)
    ]


@pytest.mark.parametrize(("regime", "dtype", "case"), chosen(), ids=str)
def test_outputs_and_gradients(
    module: ModuleType, use: Callable[[str], None], regime: str, dtype: torch.dtype, case: Case
) -> None:
    use(regime)
    found = ours(case, dtype, "cuda")
    assert_close(found, case, dtype, roundings=8 if dtype == torch.float32 else 1)
    for seed in SEEDS[1:] if case.T <= 7 else SEEDS[1:2]:
        module.shim.shim_seed(seed)
        same_bits(found, ours(case, dtype, "cuda"), f"with seed {seed}")


def same_bits(found: Results, again: Results, when: str) -> None:
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=f"{name} differs {when}")


# Several tiles of sequences, the last of them not full, lengths that differ; some units are padding.
CUT = [Case(3, 19, 3, H, packed="unsorted") for H in (60, 120)]
CUT += [Case(2, 2, 3, 300, bi=True, resets=True), Case(2, 2, 3, 1100)]
FEW_SLICES = 16


def kept(plan: Any, forward: bool, precision: str) -> bool:
    """Whether some of W_hh lies in shared memory."""
    bytes_of_k = plan.slices * plan.units * (2 if precision.endswith("16") else 4)
    if forward:
        return bytes_of_k // 32 // plan.kernel.splits > plan.kernel.kept
    tiles = -(-plan.slices * plan.units // 16)
    return -(-tiles * plan.k_splits // (plan.threads // 32)) > plan.kernel.kept


def wanted(plans: Sequence[Any], forward: bool, precision: str) -> list[Any]:
    """Those of few slices; and of each kernel of a grid the smallest one that keeps W_hh in shared memory."""
    large: dict[int, Any] = {}
    for plan in sorted(plans, key=lambda plan: plan.slices * plan.threads):
        if plan.kernel.regime == "grid" and kept(plan, forward, precision):
            large.setdefault(plan.kernel.number, plan)
    return [plan for plan in plans if plan.slices <= FEW_SLICES or plan in large.values()]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_kernel_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, cuda: ModuleType, precision: str
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision == "tf32")
    dtype, every, run = PRECISIONS[precision], cuda._plans, numbers_run(monkeypatch, cuda)
    used: dict[bool, list[Any]] = {True: [], False: []}
    for case in CUT:
        sizes = (case.B, case.H, case.D, precision, cuda._card(CPU))
        plans = {forward: wanted(every(forward, *sizes), forward, precision) for forward in used}
        if not all(plans.values()):
            continue
        # In turns, where one direction of time has fewer.
        for k in range(max(map(len, plans.values()))):
            now = {forward: found[k % len(found)] for forward, found in plans.items()}
            monkeypatch.setattr(cuda, "_plans", lambda forward, *_, now=now: [now[forward]])
            found = ours(case, dtype, "cuda")
            try:
                assert_close(found, case, dtype, roundings=ROUNDINGS[precision])
            except AssertionError as error:
                raise AssertionError(f"{case}, {now}") from error
            for forward, plan in now.items():
                used[forward].append(plan)
    assert run == {forward: {plan.kernel.number for plan in plans} for forward, plans in used.items()}
    for forward, plans in used.items():
        assert run[forward] == {k.number for k in cuda._kernels(forward) if k.precision == precision}
        spilled = {plan.kernel.regime for plan in plans if kept(plan, forward, precision)}
        assert spilled >= {"cluster", "grid"} and (
            not forward or precision == "float16" or "block" in spilled
        )
        assert {plan.slices for plan in plans if plan.kernel.regime == "cluster"} == {2, 4, 8, 16}
        for regime in REGIMES:
            splits = {plan.k_splits for plan in plans if plan.kernel.regime == regime}
            assert max(splits) == 1 if forward else len(splits) > 1, regime


def numbers_run(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> dict[bool, set[int]]:
    """The kernels, by number, that will have been run, forward and backward."""
    run: dict[bool, set[int]] = {True: set(), False: set()}
    real = cuda._cuda

    def forward(number: int, *rest: Any) -> None:
        real.forward(number, *rest)
        run[True].add(number)

    def backward(number: int, *rest: Any) -> None:
        real.backward(number, *rest)
        run[False].add(number)

    recorded = {"forward": forward, "backward": backward}
    monkeypatch.setattr(cuda, "_cuda", SimpleNamespace(**{**vars(real), **recorded}))
    return run


def test_every_precision_has_its_turn(cuda: ModuleType) -> None:
    for forward in (True, False):
        assert {kernel.precision for kernel in cuda._kernels(forward)} == PRECISIONS.keys()
        assert {kernel.regime for kernel in cuda._kernels(forward)} == set(REGIMES)


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
    cuda: ModuleType, use: Callable[[str], None], regime: str, packed: bool
) -> None:
    use(regime)
    call = layer_call(torch.bfloat16, packed=packed)
    saved, plain = cuda.layer_forward(*call, True), cuda.layer_forward(*call, False)
    for one, other in zip(saved[:3], plain[:3], strict=True):
        assert torch.equal(one, other)
    assert plain[3].numel() == plain[4].numel() == 0
    assert saved[3].dtype == accumulation(torch.bfloat16) and saved[4].shape == (1, len(call[0]), 160)


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_that_are_none_count_as_zeros(
    cuda: ModuleType, use: Callable[[str], None], regime: str
) -> None:
    use(regime)
    call = layer_call(torch.bfloat16)
    y, h_n, c_n, c, gates = cuda.layer_forward(*call, True)
    zeros = torch.zeros_like(y), torch.zeros_like(h_n), torch.zeros_like(c_n)
    dh_n = torch.randn_like(h_n)
    given = cuda.layer_backward(zeros[0], dh_n, zeros[2], *call, y, c, gates, True, True)
    left_out = cuda.layer_backward(None, dh_n, None, *call, y, c, gates, True, True)
    for one, other in zip((*given[:3], *given[3]), (*left_out[:3], *left_out[3]), strict=True):
        assert torch.equal(one, other)
    without = cuda.layer_backward(y, None, None, *call, y, c, gates, True, True)
    zero = cuda.layer_backward(y, zeros[1], zeros[2], *call, y, c, gates, True, True)
    assert torch.equal(without[1], zero[1]) and torch.equal(without[2], zero[2])
    nothing = cuda.layer_backward(None, dh_n, None, *call, y, c, gates, False, False)
    assert nothing[0].numel() == 0 and all(w.numel() == 0 for w in nothing[3])


def test_nothing_to_do_runs_no_kernel(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    monkeypatch.setattr(cuda, "_cuda", None)
    weights = layer_call()[4]
    for B, h0 in ((3, torch.randn(1, 3, 40)), (0, torch.randn(1, 0, 40))):
        x = torch.empty(0, 5)  # T = 0, then B = 0
        y, h_n, c_n, c, gates = cuda.layer_forward(x, None, h0, -h0, weights, True)
        assert y.shape == (0, 40) and torch.equal(h_n, h0) and torch.equal(c_n, -h0)
        dx, dh0, dc0, dweights = cuda.layer_backward(
            None, 2 * h0, None, x, None, h0, -h0, weights, y, c, gates, True, True
        )
        assert dx.shape == x.shape and torch.equal(dh0, 2 * h0) and torch.equal(dc0, 0 * h0), B
        assert [dw.shape for dw in dweights] == [w.shape for w in weights]
        assert not any(dw.any() for dw in dweights)


# Guards see what the shim's own memory sees: an index beyond it, and a read before it as NaN in a result.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("regime", REGIMES)
def test_memory_is_kept_within_its_bounds(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, cuda: ModuleType, use: Callable[[str], None],
    regime: str, ids: bool, dtype: torch.dtype,
) -> None:  # fmt: skip
    use(regime)
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(cuda, name, guarded(module, getattr(cuda, name)))
    addresses, alive = cuda._addresses, []

    def guarded_addresses(steps: Any, mail: torch.Tensor, flags: torch.Tensor) -> tuple[int, ...]:
        alive[:] = [t if t.numel() == 0 else cuda_on_cpu.guarded(module.shim, t) for t in (mail, flags)]
        return addresses(steps, *alive)

    monkeypatch.setattr(cuda, "_addresses", guarded_addresses)
    case = Case(4, 19, 5, 13, bi=True, ids=ids, packed="unsorted", resets=True)
    assert_close(ours(case, dtype, "cuda"), case, dtype, roundings=8 if dtype == torch.float32 else 1)
    assert (alive[0].numel() > 0) == (alive[1].numel() > 0) == (regime == "grid")
    if regime == "grid":
        assert alive[1].unique().tolist() == [case.T]  # of the backward: each block gave its pieces T times


def guarded(module: ModuleType, recurrence: Callable[[Any], None]) -> Callable[[Any], None]:
    """The recurrence on copies of its tensors that know their bounds; one that is two arguments stays so."""

    def run(call: Any) -> None:
        copies: dict[int, torch.Tensor] = {}

        def copied(part: Any) -> Any:
            fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
            tensors = {name: t for name, t in fields.items() if isinstance(t, torch.Tensor)}
            for t in tensors.values():
                if t.data_ptr() not in copies:
                    copies[t.data_ptr()] = cuda_on_cpu.guarded(module.shim, t)
            return dataclasses.replace(part, **{name: copies[t.data_ptr()] for name, t in tensors.items()})

        recurrence(copied(dataclasses.replace(call, steps=copied(call.steps))))
        for field in dataclasses.fields(call):
            tensor = getattr(call, field.name)
            if isinstance(tensor, torch.Tensor):
                tensor.copy_(copies[tensor.data_ptr()].view(tensor.shape))

    return run


def test_memory_is_checked(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, cuda: ModuleType, use: Callable[[str], None]
) -> None:
    use("block")

    def short(call: Any) -> None:
        forward(dataclasses.replace(call, y=cuda_on_cpu.guarded(module.shim, call.y[:-1])))

    forward = cuda._forward
    monkeypatch.setattr(cuda, "_forward", short)
    with pytest.raises(RuntimeError, match=r"the CUDA kernel block bfloat16: block .* byte \d+ of a buffer"):
        cuda.layer_forward(*layer_call(torch.bfloat16), True)


def test_tf32_is_used_when_torch_allows_it(
    monkeypatch: pytest.MonkeyPatch, use: Callable[[str], None]
) -> None:
    case = Case(7, 5, 9, 16)
    truth = exact(case, torch.float32)["y"]
    for regime in REGIMES:
        use(regime)
        errors = []
        for allowed in (False, True):
            monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
            errors.append(np.abs(ours(case, torch.float32, "cuda")["y"] - truth).max())
        assert errors[0] < 2e-6 < 1e-5 < errors[1] < 5e-3, regime


def test_a_kernel_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    every, call = cuda._plans, layer_call(torch.bfloat16)
    changes = [
        ("block", {"units": 12}, "the CUDA kernel block bfloat16: the plan does not fit the kernel"),
        ("cluster", {"slices": 3}, "the plan does not fit the kernel"),  # too few units
        ("cluster", {"slices": 17}, "cluster: 17 blocks, expected 1 to 16"),
        ("grid", {"tiles_at_once": 0}, "the plan does not fit the kernel"),
    ]
    for regime, change, words in changes:

        def broken(*args: Any, regime: str = regime, change: dict[str, int] = change) -> list[Any]:
            plan = next(plan for plan in every(*args) if plan.kernel.regime == regime)
            return [dataclasses.replace(plan, **change)]

        monkeypatch.setattr(cuda, "_plans", broken)
        with pytest.raises(RuntimeError, match=words):
            cuda.layer_forward(*call, True)
    monkeypatch.setattr(cuda, "_plans", lambda *_: [])
    with pytest.raises(RuntimeError, match=r"no CUDA kernel fits H = 40 in torch.bfloat16: ask for"):
        cuda.layer_forward(*call, True)


def test_supports_says_why_not(monkeypatch: pytest.MonkeyPatch, cuda: ModuleType) -> None:
    def why(
        device: str = "cpu", dtype: torch.dtype = torch.float32, H: int = 8, P: int = 8, D: int = 1
    ) -> str:
        return str(why_not(Spec(device, dtype, 5, 2, 3, H, P, D, grad=True), "cuda"))

    assert why() == "None" and cuda.kernel(Spec("cpu", torch.float32, 5, 2, 3, 8, 8)) in REGIMES
    assert "not torch.float64" in why(dtype=torch.float64)
    assert "projection (proj_size=4)" in why(P=4)
    assert "H=9000 in torch.float32 does not fit" in why(H=9000, P=9000)
    assert why(H=900, P=900, dtype=torch.float16) == "None"
    assert "D=2 at once" in why(H=1700, P=1700, dtype=torch.float16, D=2)
    monkeypatch.setattr(cuda, "DEVICES", {"cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch finds no GPU" in why() and "torch finds no GPU" in str(fusedlstm.backends()["cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "NVIDIA" in why()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 8.0 (Ampere), got 7.5" in str(fusedlstm.backends()["cuda"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert "the tensors are on cpu" in why()
    with pytest.raises(ValueError, match="tensors are on cpu"):
        fusedlstm.LSTM(3, 8, backend="cuda")(torch.randn(5, 2, 3))


def test_without_its_extension_the_backend_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = sys.modules["fusedlstm.backends"]
    monkeypatch.setitem(sys.modules, "fusedlstm._cuda", None)  # which no import gets past
    monkeypatch.delattr(fusedlstm, "_cuda")
    monkeypatch.delitem(sys.modules, "fusedlstm.backends.cuda")
    monkeypatch.delitem(registry._modules, "cuda")
    monkeypatch.setattr(registry, "_reasons", {})
    said = str(fusedlstm.backends()["cuda"])
    assert said.startswith("not available here: ") and "_cuda" in said
    with pytest.raises(ValueError, match=r"backend='cuda' .*not available here"):
        fusedlstm.LSTM(3, 8, backend="cuda")(torch.randn(5, 2, 3))


CARDS = {"H100": (132, 227 << 10, (9, 0)), "A100": (108, 163 << 10, (8, 0)),
         "RTX 4090": (128, 99 << 10, (8, 9))}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_plans_stay_on_the_card(cuda: ModuleType, name: str) -> None:
    card = cuda.Card(*CARDS[name])
    shapes = [(1, 5, 1), (16, 64, 2), (100, 512, 1), (16, 768, 1), (64, 1024, 1), (3000, 96, 2)]
    for (B, H, D), precision, forward in itertools.product(shapes, PRECISIONS, (True, False)):
        plans = cuda._plans(forward, B, H, D, precision, card)
        assert plans or H > 96, (B, H, D, precision)
        assert [plan.step_us for plan in plans] == sorted(plan.step_us for plan in plans)
        for plan in plans:
            kernel, tiles = plan.kernel, -(-B // cuda.TILE)
            assert plan.step_us > 0 and kernel.precision == precision
            assert kernel.regime != "cluster" or (plan.slices in (2, 4, 8, 16) and card.capability >= (9, 0))
            assert kernel.regime != "block" or plan.slices == 1
            assert plan.slices * plan.units >= H and plan.units % 8 == 0 and plan.threads <= kernel.threads
            assert kernel.splits == 1 or plan.units // 8 <= 15  # named barriers
            assert 0 < plan.shared_bytes <= card.shared_bytes and 1 <= plan.tiles_at_once <= tiles
            if kernel.regime == "grid":  # all of which wait for each other
                assert plan.slices * plan.tiles_at_once * D <= card.multiprocessors
