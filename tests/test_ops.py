"""The registered ops: schemas, fakes, every order and kind of derivative, transforms, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import fusedlstm
from cases import BACKENDS
from fusedlstm.ops import layer_bwd, layer_fwd

OPS = [name for name in BACKENDS if name != "torch"]
VARIANTS = ["plain", "nobias", "bi", "packed", "ids", "proj"]


def layer(variant: str, dtype: torch.dtype = torch.float64, grads: bool = True) -> tuple[Any, ...]:
    """x, batch_sizes, h0, c0 and weights of a small layer."""
    T, B, I, H = 4, 3, 2, 4  # noqa: E741
    D, P = (2 if variant == "bi" else 1), (2 if variant == "proj" else H)
    sizes = torch.tensor([3, 2, 2, 1]) if variant == "packed" else None
    N = T * B if sizes is None else int(sizes.sum())
    shapes = (
        [(4 * H, I), (4 * H, P)] + [(4 * H,)] * (2 * (variant != "nobias")) + [(P, H)] * (variant == "proj")
    )

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_(grads)

    x = torch.randint(I, (N,)) if variant == "ids" else normal(N, I)
    return x, sizes, normal(D, B, P), normal(D, B, H), [normal(*shape) for shape in shapes * D]


def supported(backends: list[str]) -> list[tuple[str, str]]:
    return [(b, v) for b in backends for v in VARIANTS if not (b == "cpu" and v == "proj")]


@pytest.mark.parametrize(("backend", "variant"), supported(OPS))
def test_opcheck(backend: str, variant: str) -> None:
    x, sizes, h0, c0, weights = layer(variant)
    torch.library.opcheck(layer_fwd, (x, sizes, h0, c0, weights, True, backend))
    torch.library.opcheck(layer_fwd, (*layer(variant, torch.float32, grads=False), False, backend))
    with torch.no_grad():
        y, h_n, c_n, c, gates = layer_fwd(x, sizes, h0, c0, weights, True, backend)
    dy, dh_n, dc_n = (torch.randn_like(t) for t in (y, h_n, c_n))
    forward = [t.detach() for t in (x, h0, c0, *weights)]
    rest = forward[0], sizes, *forward[1:3], forward[3:], y, c, gates
    for outer in ((dy, dh_n, dc_n), (dy, None, None), (None, dh_n, dc_n)):
        torch.library.opcheck(layer_bwd, (*outer, *rest, True, True, backend))
    torch.library.opcheck(layer_bwd, (dy, dh_n, dc_n, *rest, False, False, backend))


@pytest.mark.parametrize(("backend", "variant"), supported(OPS))
def test_gradcheck(backend: str, variant: str) -> None:
    x, sizes, h0, c0, weights = layer(variant)

    def run(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return layer_fwd(x, sizes, h0, c0, list(weights), True, backend)[:3]

    # A gradient that does not come in a fixed order of sums would fail the default nondet_tol of 0.
    assert gradcheck(run, (x, h0, c0, *weights), check_forward_ad=True)
    assert gradgradcheck(run, (x, h0, c0, *weights), fast_mode=True)


@pytest.mark.parametrize("backend", OPS)
@pytest.mark.parametrize("frozen", ["x", "weights", "states", "w_hh"])
def test_what_needs_no_gradient_gets_none(backend: str, frozen: str) -> None:
    x, sizes, h0, c0, weights = layer("plain")
    leaves = {"x": [x], "states": [h0, c0], "weights": weights, "w_hh": [weights[1]]}
    layer_fwd(x, sizes, h0, c0, weights, True, backend)[0].sum().backward()
    everything = [t.grad.clone() for t in (x, h0, c0, *weights)]
    for t in (x, h0, c0, *weights):
        t.grad = None
    for t in leaves[frozen]:
        t.requires_grad_(False)
    layer_fwd(x, sizes, h0, c0, weights, True, backend)[0].sum().backward()
    for t, expected in zip((x, h0, c0, *weights), everything, strict=True):
        assert t.grad is None if any(t is leaf for leaf in leaves[frozen]) else torch.equal(t.grad, expected)


@pytest.mark.parametrize("backend", OPS)
def test_one_output_alone_has_its_gradient(backend: str) -> None:
    x, sizes, h0, c0, weights = layer("packed")
    outputs = layer_fwd(x, sizes, h0, c0, weights, True, backend)[:3]
    random = [torch.randn_like(t) for t in outputs]
    leaves = [x, h0, c0, *weights]
    apart = [
        torch.autograd.grad(t, leaves, r, retain_graph=True) for t, r in zip(outputs, random, strict=True)
    ]
    together = torch.autograd.grad(outputs, leaves, random)
    for all_at_once, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(all_at_once, sum(parts))


@pytest.mark.parametrize("backend", OPS)
def test_nothing_is_saved_or_differentiable_that_need_not_be(backend: str) -> None:
    arguments = layer("plain")
    *_, c, gates = layer_fwd(*arguments, True, backend)
    assert (
        c.shape == (1, 12, 4) and gates.shape == (1, 12, 16) and not (c.requires_grad or gates.requires_grad)
    )
    with torch.no_grad():
        *_, c, gates = layer_fwd(*arguments, False, backend)
    assert c.numel() == gates.numel() == 0


def loss(module: torch.nn.LSTM) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    return lambda weights, x: functional_call(module, weights, (x,))[0].pow(2).sum()


TRANSFORMS: dict[str, Callable[[torch.nn.LSTM, dict[str, Tensor], Tensor], Any]] = {
    "grad": lambda m, w, x: grad(loss(m))(w, x),
    "jacrev": lambda m, w, x: jacrev(lambda x: m(x)[0])(x),
    "hessian": lambda m, w, x: hessian(lambda x: m(x)[0].sum())(x),
    "jacrev of jacrev": lambda m, w, x: jacrev(jacrev(lambda x: m(x)[0].sum()))(x),
    "jvp": lambda m, w, x: jvp(lambda x: m(x)[0], (x,), (torch.cos(x),)),
}


@pytest.mark.parametrize("backend", OPS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_agree_with_torchs(name: str, backend: str) -> None:
    ours = fusedlstm.LSTM(3, 4, num_layers=2, dtype=torch.float64, backend=backend)
    torchs = torch.nn.LSTM(3, 4, num_layers=2, dtype=torch.float64)
    torchs.load_state_dict(ours.state_dict())
    x, transform = torch.randn(3, 2, 3, dtype=torch.float64), TRANSFORMS[name]
    torch.testing.assert_close(
        transform(ours, dict(ours.named_parameters()), x),
        transform(torchs, dict(torchs.named_parameters()), x),
    )


@pytest.mark.parametrize("backend", OPS)
def test_vmap_over_inputs_weights_and_gradients(backend: str) -> None:
    module = fusedlstm.LSTM(3, 4, dtype=torch.float64, backend=backend)
    x = torch.randn(5, 3, 2, 3, dtype=torch.float64)
    weights = dict(module.named_parameters())
    stacked = {name: torch.stack([w.detach() * k for k in range(1, 6)]) for name, w in weights.items()}
    each = [{name: w[k] for name, w in stacked.items()} for k in range(5)]
    torch.testing.assert_close(vmap(lambda x: module(x)[0])(x), torch.stack([module(one)[0] for one in x]))
    per_sample = vmap(grad(loss(module)), (None, 0))(weights, x)
    ensemble = vmap(grad(loss(module)), (0, 0))(stacked, x)
    outer = grad(lambda x: vmap(lambda one: module(one)[0].pow(2).sum())(x).sum())(x)
    for k in range(5):
        torch.testing.assert_close(
            {n: g[k] for n, g in per_sample.items()}, grad(loss(module))(weights, x[k])
        )
        torch.testing.assert_close({n: g[k] for n, g in ensemble.items()}, grad(loss(module))(each[k], x[k]))
        torch.testing.assert_close(outer[k], grad(lambda x: loss(module)(weights, x))(x[k]))


@pytest.mark.parametrize("backend", OPS)
def test_tangents_travel_forward(backend: str) -> None:
    module = fusedlstm.LSTM(3, 4, dtype=torch.float64, backend=backend)
    x, v, step = *torch.randn(2, 3, 2, 3, dtype=torch.float64), 1e-6
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x, v))[0]).tangent
        numeric = (module(x + step * v)[0] - module(x - step * v)[0]) / (2 * step)
    torch.testing.assert_close(tangent, numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", OPS)
def test_autocast_does_not_reach_into_the_op(backend: str) -> None:
    arguments = layer("plain", torch.float32)
    expected = layer_fwd(*arguments, True, backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer_fwd(*arguments, True, backend)
        gradients = torch.autograd.grad(found[0].sum(), arguments[4])
    for ours, theirs in zip(
        (*found, *gradients), (*expected, *torch.autograd.grad(expected[0].sum(), arguments[4])), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", OPS)
def test_saved_tensors_are_gates_h_and_c(backend: str) -> None:
    T, B, I, H = 9, 4, 6, 16  # noqa: E741
    module = fusedlstm.LSTM(I, H, backend=backend)
    x, known, saved = torch.randn(T, B, I, requires_grad=True), {}, {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in known:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    known = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        module(x)
    assert sum(saved.values()) <= 6 * T * B * H + B * H  # and the zeros that both states start from
