"""The ops fusedlstm::layer_fwd and fusedlstm::layer_bwd: one LSTM layer in all its directions.

layer_fwd returns y [N, D*P], h_n [D, B, P], c_n [D, B, H], and for the backward c [D, N, H] and gates [D, N,
4H]. Rows are time-major and packed as in PackedSequence; fresh [D, N] says which start from states of zero.
backends/eager.py states the same contract in plain
torch, and takes the op's place where derivatives beyond the first are asked for, or tangents travel forward.

The autograd kernels are our own because torch.library.register_autograd makes ops that torch.func refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import contract
from .backends import accumulation, load
from .backends.products import recomputed_gates

_lib = torch.library.Library("fusedlstm", "DEF")
_lib.define(
    "layer_fwd(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0, Tensor[] weights, bool save, str backend,"
    " Tensor? fresh=None, bool recompute=False)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor gates)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "layer_bwd(Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor x, Tensor? batch_sizes, Tensor h0, Tensor c0,"
    " Tensor[] weights, Tensor y, Tensor c, Tensor gates, bool needs_dx, bool needs_dw, str backend,"
    " Tensor? fresh=None)"
    " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor[] dweights)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_lib.define(
    "layer_gates(Tensor x, Tensor? batch_sizes, Tensor h0, Tensor[] weights, Tensor y, Tensor? fresh=None)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
layer_fwd = torch.ops.fusedlstm.layer_fwd.default
layer_bwd = torch.ops.fusedlstm.layer_bwd.default
layer_gates = torch.ops.fusedlstm.layer_gates.default

Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, list[Tensor]]


def run_layer(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    save: bool,
    backend: str,
    fresh: Tensor | None,
    recompute: bool = False,
) -> Forward:
    """Calls layer_fwd, past its autograd kernel (3 us in Python) where nothing can ask for a derivative."""
    if save or torch.compiler.is_compiling() or forward_ad._current_level >= 0:
        return layer_fwd(x, batch_sizes, h0, c0, weights, save, backend, fresh, recompute)
    with torch._C._AutoDispatchBelowAutograd():
        return layer_fwd(x, batch_sizes, h0, c0, weights, save, backend, fresh)


@torch.library.impl(_lib, "layer_fwd", "CompositeExplicitAutograd")
def _layer_fwd(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Tensor],
    save: bool,
    backend: str,
    fresh: Tensor | None = None,
    recompute: bool = False,
) -> Forward:
    contract.check(x, batch_sizes, h0, c0, weights, fresh, backend)
    return _without_autocast(
        load(backend).layer_forward,
        h0.device.type,
        x.contiguous(),
        batch_sizes,
        h0.contiguous(),
        c0.contiguous(),
        [w.contiguous() for w in weights],
        save,
        *_masks(fresh),
    )


@torch.library.impl(_lib, "layer_bwd", "CompositeExplicitAutograd")
def _layer_bwd(
    dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, x: Tensor, batch_sizes: Tensor | None,
    h0: Tensor, c0: Tensor, weights: Sequence[Tensor], y: Tensor, c: Tensor, gates: Tensor, needs_dx: bool,
    needs_dw: bool, backend: str, fresh: Tensor | None = None,
) -> Backward:  # fmt: skip
    contract.check(x, batch_sizes, h0, c0, weights, fresh, backend)
    contract.check_saved(dy, dh_n, dc_n, h0, c0, y, c, gates, x.shape[0])
    return _without_autocast(
        load(backend).layer_backward,
        h0.device.type,
        *(None if t is None else t.contiguous() for t in (dy, dh_n, dc_n)),
        x.contiguous(),
        batch_sizes,
        h0.contiguous(),
        c0.contiguous(),
        [w.contiguous() for w in weights],
        y.contiguous(),
        c.contiguous(),
        gates.contiguous(),
        needs_dx,
        needs_dw,
        *_masks(fresh),
    )


@torch.library.impl(_lib, "layer_gates", "CompositeExplicitAutograd")
def _layer_gates(
    x: Tensor, batch_sizes: Tensor | None, h0: Tensor, weights: Sequence[Tensor], y: Tensor,
    fresh: Tensor | None = None,
) -> Tensor:  # fmt: skip
    args = x, batch_sizes, h0, weights, y, fresh
    return _without_autocast(recomputed_gates, h0.device.type, *args)


def _masks(fresh: Tensor | None) -> list[Tensor]:
    """The last argument of a backend that takes reset masks; others are not given one."""
    return [] if fresh is None else [fresh.contiguous()]


def _without_autocast(function: Callable[..., Any], device: str, *args: Any) -> Any:
    """Calls a backend with autocast off: its arithmetic has the dtypes of its contract, whoever calls."""
    if not torch.is_autocast_enabled(device):
        return function(*args)
    with torch.autocast(device, enabled=False):
        return function(*args)


@torch.library.register_fake("fusedlstm::layer_fwd", lib=_lib)
def _layer_fwd_fake(*args: Any) -> Forward:
    x, _, h0, c0, _, save, *_ = args
    (D, _, P), H, N = h0.shape, c0.shape[2], x.shape[0]
    return (
        h0.new_empty((N, D * P)),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        h0.new_empty((D, N, H) if save else 0, dtype=accumulation(h0.dtype)),
        h0.new_empty((D, N, 4 * H) if save else 0),
    )


@torch.library.register_fake("fusedlstm::layer_bwd", lib=_lib)
def _layer_bwd_fake(*args: Any) -> Backward:
    _, _, _, x, _, h0, c0, weights, _, _, _, needs_dx, needs_dw, *_ = args
    return (
        h0.new_empty(x.shape if needs_dx and x.is_floating_point() else 0),
        h0.new_empty(h0.shape),
        c0.new_empty(c0.shape),
        [w.new_empty(w.shape if needs_dw else 0) for w in weights],
    )


@torch.library.register_fake("fusedlstm::layer_gates", lib=_lib)
def _layer_gates_fake(*args: Any) -> Tensor:
    _, _, h0, weights, y, *_ = args
    return y.new_empty((h0.shape[0], y.shape[0], weights[1].shape[0]))


class _Layer(_SingleLevelFunction):
    """layer_fwd with its gradient."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, call: Any, backend: str, recompute: bool, *tensors: Any
    ) -> Forward:
        x, batch_sizes, fresh, h0, c0, *weights = tensors
        y, h_n, c_n, c, gates = call(x, batch_sizes, h0, c0, weights, True, backend, fresh, recompute)
        ctx.save_for_backward(*tensors, y, c, None if recompute else gates)
        ctx.mark_non_differentiable(c, gates)
        ctx.set_materialize_grads(False)
        ctx.backend = backend
        return y, h_n, c_n, c, gates

    @staticmethod
    def backward(ctx: Any, *doutputs: Tensor | None) -> tuple:  # type: ignore[override]
        x, batch_sizes, fresh, h0, c0, *weights, y, c, gates = ctx.saved_tensors
        _, _, _, needs_dx, _, _, _, _, *needs_dweights = ctx.needs_input_grad
        needs_dw = any(needs_dweights)
        if gates is None:
            with torch.no_grad():
                gates = layer_gates(x, batch_sizes, h0, weights, y, fresh)
        dx, dh0, dc0, dweights = layer_bwd(
            *doutputs[:3],
            x,
            batch_sizes,
            h0,
            c0,
            weights,
            y,
            c,
            gates,
            needs_dx,
            needs_dw,
            ctx.backend,
            fresh,
        )
        return (
            None,
            None,
            None,
            dx if needs_dx else None,
            None,
            None,
            dh0,
            dc0,
            *(dweights if needs_dw else [None] * len(weights)),
        )


class _LayerBackward(_SingleLevelFunction):
    """layer_bwd with its gradient, for which it differentiates the eager layer and its backward."""

    @staticmethod
    def forward(ctx: Any, call: Any, args: tuple, *tensors: Any) -> tuple:  # type: ignore[override]
        dy, dh_n, dc_n, x, batch_sizes, fresh, h0, c0, *weights = tensors
        y, c, gates, needs_dx, needs_dw, backend = args
        dx, dh0, dc0, dweights = call(
            dy, dh_n, dc_n, x, batch_sizes, h0, c0, weights, y, c, gates, needs_dx, needs_dw, backend, fresh
        )
        ctx.save_for_backward(*tensors)
        ctx.wanted = needs_dx, needs_dw
        return dx, dh0, dc0, *dweights

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:  # type: ignore[override]
        dy, dh_n, dc_n, x, batch_sizes, fresh, h0, c0, *weights = ctx.saved_tensors
        eager = load("eager")
        named = {"dy": dy, "dh_n": dh_n, "dc_n": dc_n, "x": x, "h0": h0, "c0": c0}
        inputs = {name: t for name, t in named.items() if t is not None and t.is_floating_point()}

        def first(inputs: dict[str, Tensor], weights: list[Tensor]) -> tuple:
            forward = inputs.get("x", x), batch_sizes, inputs["h0"], inputs["c0"], weights
            y, _, _, c, gates = eager.layer_forward(*forward, True, fresh)
            doutputs = (inputs.get(name) for name in ("dy", "dh_n", "dc_n"))
            dx, dh0, dc0, dweights = eager.layer_backward(
                *doutputs, *forward, y, c, gates, *ctx.wanted, fresh
            )
            return dx, dh0, dc0, *dweights

        ddinputs, ddweights = torch.func.vjp(first, inputs, weights)[1](cotangents)
        dd = [ddinputs.get(name) for name in named]
        return None, None, *dd[:4], None, None, *dd[4:], *ddweights


def _apply(function: type[_SingleLevelFunction], op: Any, keyset: Any, *args: Any) -> tuple:
    def call(*args: Any) -> Any:
        # Function.forward turns both modes off for its own level; under torch.func others lie below.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return _below_autograd(op, keyset, *args)

    # An autograd.Function would start torch.func's machinery anew; the dispatcher has already done its part.
    with enable_single_level_autograd_function():
        return function.apply(call, *args)  # type: ignore[attr-defined]


def _below_autograd(op: Any, keyset: Any, *args: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    return forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def _needs_grad(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _layer_fwd_autograd(
    keyset: Any, x: Tensor, batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor],
    save: bool, backend: str, fresh: Tensor | None = None, recompute: bool = False,
) -> Forward:  # fmt: skip
    tensors = (x, h0, c0, *weights)
    if _has_tangent(tensors):
        return load("eager").layer_forward(x, batch_sizes, h0, c0, weights, save, fresh)
    if _needs_grad(tensors):
        given = (x, batch_sizes, fresh, h0, c0, *weights)
        return _apply(_Layer, layer_fwd, keyset, backend, recompute, *given)
    args = x, batch_sizes, h0, c0, weights, save, backend, fresh, recompute
    return _below_autograd(layer_fwd, keyset, *args)


def _layer_bwd_autograd(
    keyset: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, x: Tensor,
    batch_sizes: Tensor | None, h0: Tensor, c0: Tensor, weights: Sequence[Tensor], y: Tensor, c: Tensor,
    gates: Tensor, needs_dx: bool, needs_dw: bool, backend: str, fresh: Tensor | None = None,
) -> Backward:  # fmt: skip
    inputs = dy, dh_n, dc_n, x, batch_sizes, h0, c0, weights
    rest = y, c, gates, needs_dx, needs_dw
    tensors = (dy, dh_n, dc_n, x, h0, c0, *weights)
    if _has_tangent(tensors):
        return load("eager").layer_backward(*inputs, *rest, fresh)
    if _needs_grad(tensors):
        saved = (dy, dh_n, dc_n, x, batch_sizes, fresh, h0, c0, *weights)
        dx, dh0, dc0, *dweights = _apply(_LayerBackward, layer_bwd, keyset, (*rest, backend), *saved)
        return dx, dh0, dc0, dweights
    return _below_autograd(layer_bwd, keyset, *inputs, *rest, backend, fresh)


_lib.impl("layer_fwd", _layer_fwd_autograd, "Autograd", with_keyset=True)
_lib.impl("layer_bwd", _layer_bwd_autograd, "Autograd", with_keyset=True)


def _vmap_by_loop(op: Callable[..., Any]) -> Callable[..., Any]:
    """A vmap rule that calls the op once per element of the mapped dimension and stacks what it returns."""

    def pick(arg: Any, dim: Any, k: int) -> Any:
        if isinstance(arg, (list, tuple)):
            return [pick(a, d, k) for a, d in zip(arg, dim, strict=True)]
        return arg if dim is None else arg.select(dim, k)

    def stack(values: Sequence) -> Any:
        if isinstance(values[0], Tensor):
            return torch.stack(list(values))
        return type(values[0])(stack(column) for column in zip(*values, strict=True))

    def zeros(tree: Any) -> Any:
        return 0 if isinstance(tree, Tensor) else type(tree)(zeros(t) for t in tree)

    def rule(info: Any, in_dims: tuple, *args: Any) -> tuple:
        results = [
            op(*(pick(arg, dim, k) for arg, dim in zip(args, in_dims, strict=True)))
            for k in range(info.batch_size)
        ]
        return stack(results), zeros(results[0])

    return rule


torch.library.register_vmap("fusedlstm::layer_fwd", _vmap_by_loop(layer_fwd), lib=_lib)
torch.library.register_vmap("fusedlstm::layer_gates", _vmap_by_loop(layer_gates), lib=_lib)
torch.library.register_vmap("fusedlstm::layer_bwd", _vmap_by_loop(layer_bwd), lib=_lib)
