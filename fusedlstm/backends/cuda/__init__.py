"""The CUDA C++ backend: NVIDIA GPUs; float32, float16, bfloat16; any lengths, reset masks, ids."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    from ... import _cuda
except ImportError as error:
    if error.name == "fusedlstm._cuda":  # it is there, and does not load: its own words tell more
        raise
    raise ImportError("fusedlstm._cuda was not built: put nvcc on the PATH and install again") from error
from .. import Spec, products
from .generate import generator as generator
from .plans import TILE, Card, Kernel, Plan, backward_plans, card, forward_plans

RESETS = True
DEVICES = {"cuda"}
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_CAPABILITY = (8, 0)


def unavailable() -> str | None:
    """None when this machine has a GPU for the kernels, else the reason why not."""
    if "cuda" not in DEVICES:
        return None
    if not torch.cuda.is_available():
        return "not available here: torch finds no GPU"
    if torch.version.cuda is None:
        return "not available here: the kernels are for NVIDIA's GPUs"
    if torch.cuda.get_device_capability() < _CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"not available here: the kernels need compute capability 8.0 (Ampere), got {found}"
    return None


def supports(spec: Spec) -> str | None:
    """None when the kernels can serve the call, else the reason why not."""
    if spec.device not in DEVICES:
        return f"runs on a GPU, the tensors are on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"serves float32, float16 and bfloat16, not {spec.dtype}"
    if spec.P != spec.H:
        return f"has no projection (proj_size={spec.P})"
    device = torch.device(spec.device)
    for forward in (True, False) if spec.grad else (True,):
        if not plans(forward, spec.B, spec.H, spec.D, spec.dtype, device):
            return (
                f"H={spec.H} in {spec.dtype} does not fit on this GPU's multiprocessors, D={spec.D} at once"
            )
    return None


def kernel(spec: Spec) -> str:
    """The regime that serves a call."""
    device = torch.device(spec.device)
    return plans(True, spec.B, spec.H, spec.D, spec.dtype, device)[0].kernel.regime


def plans(forward: bool, B: int, H: int, D: int, dtype: torch.dtype, device: torch.device) -> list[Plan]:
    """Those that fit, the shortest predicted step first."""
    return _plans(forward, B, H, D, _precision(dtype), _card(device))


@functools.lru_cache(maxsize=1024)
def _plans(forward: bool, B: int, H: int, D: int, precision: str, card: Card) -> list[Plan]:
    make, shared_bytes = (
        (forward_plans, _cuda.forward_shared_bytes)
        if forward
        else (backward_plans, _cuda.backward_shared_bytes)
    )
    return make(B, H, D, precision, card, _kernels(forward), shared_bytes)


def layer_forward(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Runs one layer in all its directions; arguments and results as backends.eager.layer_forward."""
    with torch.cuda.device_of(x):
        return products.forward(_forward, x, *args)


def layer_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of one layer; arguments and results as backends.eager.layer_backward."""
    with torch.cuda.device_of(args[3]):
        return products.backward(_backward, *args)


def _forward(call: products.Forward) -> None:
    plan = _choose(True, call.steps, call.h0)
    # h of two steps, as the slices give it.
    mail = call.h0.new_empty(_mail_rows(plan, call.steps), plan.slices * plan.units)
    flags = _flags(plan, mail)
    _cuda.forward(
        plan.kernel.number, *_sizes(plan, call.steps), *_addresses(call.steps, mail, flags),
        call.gx.data_ptr(), call.gx.stride(0), _address(call.ids), _address(call.bias), call.w_hh.data_ptr(),
        call.h0.data_ptr(), call.c0.data_ptr(), call.y.data_ptr(), call.h_n.data_ptr(), call.c_n.data_ptr(),
        _address(call.c), _address(call.gates), _stream(call.h0),
    )  # fmt: skip


def _backward(call: products.Backward) -> None:
    plan = _choose(False, call.steps, call.c0)
    # Pieces of dh of two steps, for each block from each.
    width = plan.slices * plan.units * plan.slices * plan.k_splits
    mail = call.c0.new_empty(_mail_rows(plan, call.steps), width, dtype=torch.float32)
    flags = _flags(plan, mail)
    _cuda.backward(
        plan.kernel.number, *_sizes(plan, call.steps), plan.k_splits, *_addresses(call.steps, mail, flags),
        _address(call.dy), _address(call.dh_n), _address(call.dc_n), call.c0.data_ptr(),
        call.w_hh.data_ptr(), call.c.data_ptr(), call.gates.data_ptr(), call.dgates.data_ptr(),
        call.dh0.data_ptr(), call.dc0.data_ptr(), _stream(call.c0),
    )  # fmt: skip


def _choose(forward: bool, steps: products.Steps, like: Tensor) -> Plan:
    found = plans(forward, steps.B, steps.H, steps.D, like.dtype, like.device)
    if not found:
        raise RuntimeError(f"no CUDA kernel fits H = {steps.H} in {like.dtype}: ask for backend='auto'")
    return found[0]


def _mail_rows(plan: Plan, steps: products.Steps) -> int:
    return 2 * steps.D * -(-steps.B // TILE) * TILE if plan.kernel.regime == "grid" else 0


def _sizes(plan: Plan, steps: products.Steps) -> tuple[list[int], int]:
    return [steps.T, steps.B, steps.N, steps.H, steps.D, plan.slices, plan.units], plan.tiles_at_once


def _flags(plan: Plan, mail: Tensor) -> Tensor:
    return torch.zeros(len(mail) // 2 // TILE * plan.slices, dtype=torch.int32, device=mail.device)


def _addresses(steps: products.Steps, mail: Tensor, flags: Tensor) -> tuple[int, int, int, int]:
    return _address(steps.offsets), _address(steps.fresh), mail.data_ptr(), flags.data_ptr()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def _kernels(forward: bool) -> list[Kernel]:
    table: Callable[[], list[tuple]] = _cuda.forward_kernels if forward else _cuda.backward_kernels
    return [Kernel(number, *fields) for number, fields in enumerate(table())]


def _card(device: torch.device) -> Card:
    return card(torch.cuda.current_device() if device.index is None else device.index)


def _precision(dtype: torch.dtype) -> str:
    """How products are made: float32 as torch.nn.LSTM on a GPU, by cuDNN's flag."""
    if dtype != torch.float32:
        return str(dtype).removeprefix("torch.")
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"
