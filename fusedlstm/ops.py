"""The ops fusedlstm::layer_fwd and fusedlstm::layer_bwd: one LSTM layer in all its directions, known to torch.

layer_fwd returns y [N, D*P], h_n [D, B, P], c_n [D, B, H], and for the backward c [D, N, H] and gates [D, N, 4H].
Rows are time-major and packed as in PackedSequence. backends/eager.py states the same contract in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import load

_lib = torch.library.Library("fusedlstm", "DEF")
_lib.define(
    "layer_fwd(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor[] weights, bool save, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "layer_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0,"
    " Tensor[] weights, Tensor y, Tensor c, Tensor gates, bool needs_dx, bool needs_dw, str backend)"
    " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
layer_fwd = torch.ops.fusedlstm.layer_fwd.default
layer_bwd = torch.ops.fusedlstm.layer_bwd.default

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _without_autocast(function: Callable[..., Any], device: str, *args: Any) -> Any:
    """Calls a backend with autocast off: its arithmetic has the dtypes of its contract, whoever calls."""
    if not torch.is_autocast_enabled(device):
        return function(*args)
    with torch.autocast(device, enabled=False):
        return function(*args)


@torch.library.impl(_lib, "layer_fwd", "CompositeExplicitAutograd")
def _layer_fwd(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool, backend: str
) -> Forward:
    if not x.is_floating_point() and x.numel():
        low, high = (int(bound) for bound in x.aminmax())
        if low < 0 or high >= weights[0].shape[1]:
            raise IndexError(f"ids must be in 0 <= id < I = {weights[0].shape[1]}, got {low if low < 0 else high}")
    return _without_autocast(
        load(backend).layer_forward,
        h0.device.type,
        x.contiguous(),
        batch_sizes,
        h0.contiguous(),
        c0.contiguous(),
        [w.contiguous() for w in weights],
        save,
    )


@torch.library.impl(_lib, "layer_bwd", "CompositeExplicitAutograd")
def _layer_bwd(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    c: Tensor,
    gates: Tensor,
    needs_dx: bool,
    needs_dw: bool,
    backend: str,
) -> Backward:
    if y.numel() and not gates.numel():
        raise RuntimeError("layer_bwd needs c and gates as layer_fwd(save=True) returns them, got empty ones")
    return _without_autocast(
        load(backend).layer_backward,
        h0.device.type,
        _contiguous(dy),
        _contiguous(dh_n),
        _contiguous(dc_n),
        x.contiguous(),
        batch_sizes,
        h0.contiguous(),
        c0.contiguous(),
        [w.contiguous() for w in weights],
        y,
        c,
        gates,
        needs_dx,
        needs_dw,
    )


@torch.library.register_fake("fusedlstm::layer_fwd", lib=_lib)
def _layer_fwd_fake(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], save: bool, backend: str
) -> Forward:
    (D, _, P), H, N = h0.shape, c0.shape[2], x.shape[0]
    accumulation = torch.float64 if h0.dtype == torch.float64 else torch.float32
    return (
        h0.new_empty(N, D * P),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty((D, N, H) if save else 0, dtype=accumulation),
        h0.new_empty((D, N, 4 * H) if save else 0),
    )


@torch.library.register_fake("fusedlstm::layer_bwd", lib=_lib)
def _layer_bwd_fake(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    y: Tensor,
    c: Tensor,
    gates: Tensor,
    needs_dx: bool,
    needs_dw: bool,
    backend: str,
) -> Backward:
    return (
        h0.new_empty(x.shape if needs_dx and x.is_floating_point() else 0),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        [w.new_empty(w.shape if needs_dw else 0) for w in weights],
    )


def _setup_context(ctx: Any, inputs: tuple, output: Forward) -> None:
    x, batch_sizes, h0, c0, weights, _, backend = inputs
    y, _, _, c, gates = output
    ctx.save_for_backward(x, batch_sizes, h0, c0, y, c, gates, *weights)
    ctx.mark_non_differentiable(c, gates)
    ctx.set_materialize_grads(False)
    ctx.backend = backend


def _backward(ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, *_: None) -> tuple:
    x, batch_sizes, h0, c0, y, c, gates, *weights = ctx.saved_tensors
    needs_dx, _, needs_dh0, needs_dc0, needs_dweights, _, _ = ctx.needs_input_grad
    dx, dh0, dc0, dweights = layer_bwd(
        dy, dh_n, dc_n, x, batch_sizes, h0, c0, weights, y, c, gates, needs_dx, any(needs_dweights), ctx.backend
    )
    return (
        dx if needs_dx else None,
        None,
        dh0 if needs_dh0 else None,
        dc0 if needs_dc0 else None,
        [dw if needed else None for dw, needed in zip(dweights, needs_dweights, strict=True)],
        None,
        None,
    )


torch.library.register_autograd("fusedlstm::layer_fwd", _backward, setup_context=_setup_context, lib=_lib)
