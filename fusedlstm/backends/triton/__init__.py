"""The Triton backend: NVIDIA and AMD GPUs; float32, float16, bfloat16; any lengths, ids, two directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import Spec
from . import _installed, layer, tuning  # noqa: F401  # the first sees whether the others can be imported
from .plans import STEP_SHARED_BYTES, Card, Plan, card

DEVICES = {"cuda"}
RESETS = True
_DTYPES = {torch.float32, torch.float16, torch.bfloat16}
_CAPABILITY = (8, 0)
_WEIGHTS = 2**31  # elements of both directions' W_hh: the kernels count them in 32 bits
_SEQUENCES = 16 * 65535  # blocks of 16, as many as a launch may have beside each other


def unavailable() -> str | None:
    """None when this machine has a GPU for the kernels, else the reason why not."""
    if "cuda" not in DEVICES:
        return None
    if not torch.cuda.is_available():
        return "not available here: torch finds no GPU"
    if torch.version.cuda and torch.cuda.get_device_capability() < _CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        return f"not available here: the kernels need compute capability 8.0 (Ampere), got {found}"
    shared_bytes = _card(torch.device("cuda")).shared_bytes
    if shared_bytes < STEP_SHARED_BYTES:
        needed = f"{STEP_SHARED_BYTES >> 10} KiB of shared memory for a block"
        return f"not available here: the kernels need {needed}, the GPU has {shared_bytes >> 10}"
    return None


def supports(spec: Spec) -> str | None:
    """None when the kernels can serve the call, else the reason why not."""
    if spec.device not in DEVICES:
        return f"runs on a GPU, the tensors are on {spec.device}"
    if spec.dtype not in _DTYPES:
        return f"serves float32, float16 and bfloat16, not {spec.dtype}"
    if spec.P != spec.H:
        return f"has no projection (proj_size={spec.P})"
    if 4 * spec.D * spec.H**2 > _WEIGHTS:
        most = int((_WEIGHTS / 4 / spec.D) ** 0.5)
        return f"takes up to {most} hidden units in {spec.D} direction(s), got {spec.H}"
    if spec.B > _SEQUENCES:
        return f"takes up to {_SEQUENCES} sequences, got {spec.B}"
    return None


def kernel(spec: Spec) -> str:
    """The regime that serves a call's forward, as far as it is known before the first one."""
    return tuning.known(_key(spec.B, spec.H, spec.D, spec.dtype, torch.device(spec.device), "forward")).regime


def choose(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device, way: str) -> Plan:
    """The plan of a pass, "forward" or "backward": the fastest on this GPU, or by the model."""
    return tuning.choose(_key(B, H, D, dtype, device, way), device)


def _key(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device, way: str) -> tuning.Key:
    return tuning.Key(_card(device), dtype, _precision(dtype), H, D, tuning.bucket(B), way)


def layer_forward(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Runs one layer in all its directions; arguments and results as backends.eager.layer_forward."""
    if x.shape[0] == 0:
        empty = h0.new_empty(0)
        return h0.new_empty(0, h0.shape[0] * h0.shape[2]), h0.clone(), c0.clone(), empty.float(), empty
    D, B, H = h0.shape
    with torch.cuda.device_of(x):
        chosen = choose(B, H, D, h0.dtype, h0.device, "forward")
        return layer.forward(chosen, _precision(h0.dtype), x, batch_sizes, h0, c0, weights, save, fresh)


def layer_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of one layer; arguments and results as backends.eager.layer_backward."""
    _, dh_n, dc_n, x, _, h0, c0, weights, _, _, _, _, needs_dw, *_ = args
    D, B, H = h0.shape
    if x.shape[0] == 0:
        dh0, dc0 = (torch.zeros_like(h) if dh is None else dh.clone() for h, dh in ((h0, dh_n), (c0, dc_n)))
        return torch.zeros_like(x), dh0, dc0, [w.new_zeros(w.shape if needs_dw else 0) for w in weights]
    with torch.cuda.device_of(x):
        chosen = choose(B, H, D, h0.dtype, h0.device, "backward")
        return layer.backward(chosen, _precision(h0.dtype), *args)


def _card(device: torch.device) -> Card:
    return card(torch.cuda.current_device() if device.index is None else device.index)


def _precision(dtype: torch.dtype) -> str:
    """How products are made: float32 as torch.nn.LSTM on a GPU, by cuDNN's flag."""
    if dtype != torch.float32:
        return "ieee"  # of float16 and bfloat16: exact products, summed in float32
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"
