"""The NumPy reference against itself, against numeric gradients and against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from cases import CASES, Case, data, exact, torchs
from fusedlstm import reference

T, B, I, H, P = 4, 3, 3, 3, 2  # noqa: E741

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nobias": {"bias": False},
    "bi": {"bidirectional": True},
    "layers": {"num_layers": 2},
    "lengths": {"lengths": [2, 4, 1]},
    "bi-lengths-layers": {"bidirectional": True, "lengths": [4, 1, 3], "num_layers": 2},
    "proj": {"proj": True},
    "bi-proj-layers": {"proj": True, "bidirectional": True, "num_layers": 2},
    "dropout": {"num_layers": 3, "dropout": True},
    "ids": {"ids": True},
    "bi-ids-lengths-nobias": {"ids": True, "bidirectional": True, "lengths": [1, 4, 2], "bias": False},
    "no-states": {"states": False},
    "resets": {"resets": True},
    "bi-resets-lengths-layers": {
        "resets": True,
        "bidirectional": True,
        "lengths": [4, 1, 3],
        "num_layers": 2,
    },
    "bi-resets-proj-ids": {"resets": True, "bidirectional": True, "proj": True, "ids": True},
}


def problem(
    proj: bool = False, dropout: bool = False, ids: bool = False, states: bool = True, resets: bool = False,
    **options: Any,
) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, Any]]:  # fmt: skip
    """The arguments x, weights, (h0, c0); gradients of the outputs; the options of reference.forward."""
    random = np.random.default_rng(1)
    normal = random.standard_normal
    D, L, p = 1 + options.get("bidirectional", False), options.get("num_layers", 1), P if proj else H
    weights = []
    for layer in range(L):
        for _ in range(D):
            weights += [normal((4 * H, D * p if layer else I)), normal((4 * H, p))]
            weights += [normal(4 * H), normal(4 * H)] if options.get("bias", True) else []
            weights += [normal((p, H))] if proj else []
    arguments = [random.integers(I, size=(T, B)) if ids else normal((T, B, I)), *weights]
    arguments += [normal((L * D, B, p)), normal((L * D, B, H))] if states else []
    gradients = [normal((T, B, D * p)), normal((L * D, B, p)), normal((L * D, B, H))]
    if dropout:
        options["masks"] = [random.integers(2, size=(T, B, D * p)) / 0.5 for _ in range(L - 1)]
    if resets:
        options["resets"] = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [1, 1, 0]], bool)
    return arguments, gradients, options | {"states": states}


def forward(arguments: list[np.ndarray], states: bool, **options: Any) -> reference.Result:
    x, *rest = arguments
    weights, start = (rest[:-2], rest[-2:]) if states else (rest, [])
    return reference.forward(x, weights, *start, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_gradient_of_every_element_is_the_numeric_one(options: dict[str, Any]) -> None:
    arguments, (dy, dh_n, dc_n), options = problem(**options)
    if "lengths" in options:  # what lies beyond a sequence's end is no output
        dy = dy * (np.arange(T)[:, None] < options["lengths"])[:, :, None]

    def loss() -> float:
        r = forward(arguments, **options)
        return float((r.y * dy).sum() + (r.h_n * dh_n).sum() + (r.c_n * dc_n).sum())

    dx, dh0, dc0, dweights = reference.backward(forward(arguments, **options), dy, dh_n, dc_n)
    gradients = [dx, *dweights] + ([dh0, dc0] if options["states"] else [])
    step = 1e-5
    for argument, gradient in zip(arguments, gradients, strict=True):
        if gradient is None:
            assert argument.dtype == np.int64
            continue
        numeric = np.empty_like(argument)
        for k in np.ndindex(*argument.shape):
            value = argument[k]
            argument[k] = value + step
            above = loss()
            argument[k] = value - step
            numeric[k] = (above - loss()) / (2 * step)
            argument[k] = value
        np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"proj": True}, {"num_layers": 2}], ids=str)
def test_sequential_equals_batched(options: dict[str, Any]) -> None:
    (x, *weights, h, c), _, options = problem(**options)
    options.pop("states")
    batched = reference.forward(x, weights, h, c, **options)
    for t in range(T):
        y, h, c, *_ = reference.forward(x[t : t + 1], weights, h, c, **options)
        np.testing.assert_allclose(y[0], batched.y[t], rtol=1e-13)
    np.testing.assert_allclose(h, batched.h_n, rtol=1e-13)
    np.testing.assert_allclose(c, batched.c_n, rtol=1e-13)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "lengths": [2, 4, 1], "num_layers": 2}], ids=str
)
def test_each_sequence_alone_equals_the_batch(options: dict[str, Any]) -> None:
    (x, *weights, h0, c0), (dy, dh_n, dc_n), options = problem(**options)
    options.pop("states")
    lengths = options.pop("lengths", [T] * B)
    batched = reference.forward(x, weights, h0, c0, lengths=lengths, **options)
    gradients = reference.backward(batched, dy, dh_n, dc_n)
    summed = [np.zeros_like(w) for w in weights]
    for b, n in enumerate(lengths):
        one = slice(b, b + 1)
        alone = reference.forward(x[:n, one], weights, h0[:, one], c0[:, one], **options)
        np.testing.assert_allclose(alone.y, batched.y[:n, one], rtol=1e-12)
        assert not batched.y[n:, one].any()
        np.testing.assert_allclose(alone.h_n, batched.h_n[:, one], rtol=1e-12)
        dx, dh0, _, dweights = reference.backward(alone, dy[:n, one], dh_n[:, one], dc_n[:, one])
        assert dx is not None and gradients.dx is not None
        np.testing.assert_allclose(dx, gradients.dx[:n, one], rtol=1e-11, atol=1e-14)
        np.testing.assert_allclose(dh0, gradients.dh0[:, one], rtol=1e-11, atol=1e-14)
        summed = [total + dw for total, dw in zip(summed, dweights, strict=True)]
    for total, dw in zip(summed, gradients.dweights, strict=True):
        np.testing.assert_allclose(total, dw, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_torch(case: Case) -> None:
    ours, torchs_ = exact(case, torch.float64), torchs(case, torch.float64)[0]
    assert ours.keys() == torchs_.keys()
    for name, values in torchs_.items():
        error = np.abs(ours[name] - values).max()
        assert error <= 1e-12 * np.abs(values).max(), f"{name} is off by {error:.3g}"


def test_dropout_masks_act_between_layers() -> None:
    case = Case(5, 3, 4, 6, L=2)
    d = data(case, torch.float64)
    mask = torch.bernoulli(torch.full((5, 3, 6), 0.5, dtype=torch.float64)) * 2
    first, second = (torch.nn.LSTM(n, 6, dtype=torch.float64) for n in (4, 6))
    first.load_state_dict({k: w for k, w in d.weights.items() if k.endswith("0")})
    second.load_state_dict({k.replace("1", "0"): w for k, w in d.weights.items() if k.endswith("1")})
    x = d.x.clone().requires_grad_()
    y, _ = second(first(x)[0] * mask)
    y.backward(d.dy)
    weights = [w.numpy() for w in d.weights.values()]
    result = reference.forward(d.x.numpy(), weights, num_layers=2, masks=[mask.numpy()])
    gradients = reference.backward(result, d.dy.numpy(), np.zeros((2, 3, 6)), np.zeros((2, 3, 6)))
    np.testing.assert_allclose(result.y, y.detach().numpy(), rtol=1e-12)
    assert gradients.dx is not None and x.grad is not None
    np.testing.assert_allclose(gradients.dx, x.grad.numpy(), rtol=1e-10, atol=1e-15)
    for dw, w in zip(gradients.dweights, (*first.parameters(), *second.parameters()), strict=True):
        np.testing.assert_allclose(dw, w.grad.numpy(), rtol=1e-10, atol=1e-15)


def test_sigmoid_saturates_without_a_warning() -> None:
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(
            reference.sigmoid(np.array([-np.inf, -1e3, 0, 1e3, np.inf])), [0, 0, 0.5, 1, 1]
        )
