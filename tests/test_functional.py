"""What lies between the module and the layers: ids, odd sizes, NaN, dropout, autocast, carried states."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm
from cases import BACKENDS

OPS = [name for name in BACKENDS if name != "torch"]


def skip_where_torch_fails_under_autocast(**options: Any) -> None:
    """oneDNN's LSTM raises on processors without bfloat16, where there is nothing to compare with."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            torch.nn.LSTM(6, 8, **options)(torch.randn(5, 3, 6))
    except RuntimeError as error:
        pytest.skip(f"torch.nn.LSTM fails under autocast on this processor: {str(error)[:80]}")


def pair(*sizes: int, backend: str = "auto", **options: Any) -> tuple[fusedlstm.LSTM, torch.nn.LSTM]:
    """One of ours and one of torch's, with equal weights."""
    ours, torchs = fusedlstm.LSTM(*sizes, backend=backend, **options), torch.nn.LSTM(*sizes, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def assert_same(found: Any, expected: Any, **tolerance: float) -> None:
    torch.testing.assert_close(tuple(found[1]), tuple(expected[1]), equal_nan=True, **tolerance)
    if isinstance(expected[0], PackedSequence):
        assert isinstance(found[0], PackedSequence)
        for ours, torchs in zip(found[0][1:], expected[0][1:], strict=True):
            assert (torchs is None and ours is None) or torch.equal(ours, torchs)
        found, expected = (found[0].data,), (expected[0].data,)
    torch.testing.assert_close(found[0], expected[0], equal_nan=True, **tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}], ids=str
)
def test_one_sequence_without_a_batch(backend: str, options: dict[str, Any]) -> None:
    ours, torchs = pair(5, 7, backend=backend, **options)
    states = (1 + options.get("bidirectional", False)) * options.get("num_layers", 1)
    hx = torch.randn(states, 7), torch.randn(states, 7)
    for arguments in ((torch.randn(3, 5),), (torch.randn(3, 5), hx), (torch.randn(1, 5), hx)):
        assert_same(ours(*arguments), torchs(*arguments))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_packed_sequences_come_back_packed(
    backend: str, enforce_sorted: bool, options: dict[str, Any]
) -> None:
    ours, torchs = pair(5, 7, backend=backend, **options)
    lengths = (4, 3, 3, 1) if enforce_sorted else (3, 1, 4, 3)
    packed = pack_sequence([torch.randn(n, 5) for n in lengths], enforce_sorted)
    states = (1 + options.get("bidirectional", False)) * options.get("num_layers", 1)
    hx = torch.randn(states, 4, 7), torch.randn(states, 4, 7)
    for arguments in ((packed,), (packed, hx)):
        assert_same(ours(*arguments), torchs(*arguments))


@pytest.mark.parametrize("backend", OPS)
@pytest.mark.parametrize("layout", ["batched", "batch_first", "unbatched", "packed"])
def test_ids_are_one_hot_rows(backend: str, layout: str) -> None:
    ours, torchs = pair(11, 7, num_layers=2, backend=backend, batch_first=layout == "batch_first")
    ids: Any = torch.randint(11, (6,) if layout == "unbatched" else (6, 3))
    rows: Any = torch.nn.functional.one_hot(ids, 11).float()
    if layout == "packed":
        ids, rows = (pack_sequence([t[:n, b] for b, n in enumerate((6, 4, 2))]) for t in (ids, rows))
    found = ours(ids)
    assert_same(found, torchs(rows))
    found[1][0].sum().backward()
    torchs(rows)[1][0].sum().backward()
    for w, v in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(w.grad, v.grad)


@pytest.mark.parametrize("backend", OPS)
def test_ids_under_torch_raise(backend: str) -> None:
    module = fusedlstm.LSTM(3, 4, backend="torch")
    with pytest.raises(ValueError, match=r"cannot serve this call.*ids.*backend='auto'"):
        module(torch.tensor([[0, 1]]))
    assert fusedlstm.LSTM(3, 4, backend=backend)(torch.tensor([[0, 1]]))[0].shape == (1, 2, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("T", "B", "I", "H"), [(3, 0, 5, 7), (1, 1, 1, 1), (70_001, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_odd_sizes(backend: str, T: int, B: int, I: int, H: int, bidirectional: bool) -> None:  # noqa: E741
    if backend == "eager" and T > 1000:
        T = 1001
    ours, torchs = pair(I, H, backend=backend, bidirectional=bidirectional)
    x = torch.randn(T, B, I)
    with torch.no_grad():
        assert_same(ours(x), torchs(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_has_gradients_of_zero(backend: str) -> None:
    module = fusedlstm.LSTM(5, 7, num_layers=2, backend=backend)
    x = torch.zeros(3, 0, 5, requires_grad=True)
    y, (h_n, c_n) = module(x)
    (y.sum() + h_n.sum() + c_n.sum()).backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(w.grad is None or not w.grad.any() for w in module.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_stay_in_their_sequence(backend: str, bad: float) -> None:
    ours, torchs = pair(5, 7, backend=backend)
    x = torch.randn(6, 3, 5)
    x[2, 1, 3] = bad
    # oneDNN turns an infinite input into other numbers than torch's own arithmetic does.
    with torch.backends.mkldnn.flags(enabled=False):
        y = ours(x)[0]
        assert_same(ours(x), torchs(x))
    assert y[:2].isfinite().all() and y[:, [0, 2]].isfinite().all()
    assert y[2, 1].isnan().all() == math.isnan(bad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_and_transposed_inputs(backend: str) -> None:
    ours, torchs = pair(5, 7, backend=backend)
    row, state = torch.randn(1, 1, 5), torch.randn(1, 1, 7)
    for x in (row.expand(4, 3, 5), torch.randn(3, 4, 5).transpose(0, 1), torch.randn(4, 3, 10)[..., ::2]):
        hx = state.expand(1, 3, 7), torch.randn(1, 7, 3).transpose(1, 2)
        assert_same(ours(x, hx), torchs(x, hx))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_dropout_draws_torchs_masks(backend: str, options: dict[str, Any], packed: bool) -> None:
    ours, torchs = pair(5, 7, 3, backend=backend, dropout=0.4, **options)
    x: Any = torch.randn(6, 4, 5)
    if packed:
        x = pack_sequence([x[:n, b] for b, n in enumerate((6, 5, 2, 2))])
    with torch.backends.mkldnn.flags(enabled=False):
        torch.manual_seed(3)
        expected = torchs(x)
        torch.manual_seed(3)
        found = ours(x)
        assert_same(found, expected)
        torch.manual_seed(4)
        assert not torch.equal(ours(x)[1][0], found[1][0])
        assert_same(ours.eval()(x), torchs.eval()(x))


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_of_nothing_and_of_everything(dropout: float) -> None:
    ours, torchs = pair(5, 7, 2, dropout=dropout)
    x = torch.randn(6, 4, 5)
    assert_same(ours(x), torchs(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_autocast_gives_torchs_dtypes(backend: str, options: dict[str, Any]) -> None:
    if backend == "torch":
        skip_where_torch_fails_under_autocast(**options)
    ours, torchs = pair(6, 8, backend=backend, **options)
    states = 4 if options else 1
    hx = torch.randn(states, 3, 8), torch.randn(states, 3, 8)
    x = torch.randn(5, 3, 6, requires_grad=True)
    for arguments in ((x,), (x, hx), (x.bfloat16(), hx), (x, (hx[0].bfloat16(), hx[1]))):
        with torch.autocast("cpu", torch.bfloat16):
            found = ours(*arguments)
            y = found[0]
        assert {t.dtype for t in (y, *found[1])} == {torch.bfloat16}
        exact = torchs(arguments[0].float(), *([hx] if len(arguments) > 1 else []))
        torch.testing.assert_close(y.float(), exact[0], rtol=0, atol=0.02)
        y.float().sum().backward()
        assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in ours.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert ours.double()(x.double())[0].dtype == torch.float64


@pytest.mark.parametrize("backend", OPS)
def test_autocast_takes_ids(backend: str) -> None:
    module = fusedlstm.LSTM(6, 8, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randint(6, (5, 3)))[0].dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"proj_size": 3}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_auto_has_torchs_dtypes_under_autocast(options: dict[str, Any]) -> None:
    skip_where_torch_fails_under_autocast(**options)
    ours, torchs = pair(6, 8, **options)
    x = torch.randn(5, 3, 6)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x), torchs(x)
    assert [t.dtype for t in (found[0], *found[1])] == [t.dtype for t in (expected[0], *expected[1])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_carried_over_equal_one_long_run(backend: str) -> None:
    module = fusedlstm.LSTM(5, 7, 2, backend=backend, dtype=torch.float64)
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    whole, (h_n, c_n) = module(x)
    hx, parts = None, []
    for part in x.split(2):
        y, hx = module(part, hx)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(hx, (h_n, c_n))


@pytest.mark.parametrize("backend", OPS)
def test_no_grad_and_inference_mode_compute_the_same(backend: str) -> None:
    module = fusedlstm.LSTM(5, 7, 2, backend=backend)
    x = torch.randn(4, 3, 5)
    expected = module(x)[0]
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            y = module(x)[0]
        assert torch.equal(y, expected) and not y.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_part_of_the_weights_frozen(backend: str) -> None:
    ours, torchs = pair(5, 7, 3, backend=backend)
    x = torch.randn(4, 2, 5)
    for module in (ours, torchs):
        for name, w in module.named_parameters():
            w.requires_grad_("l1" in name and "bias" not in name)
        module(x)[0].square().sum().backward()
    for w, v in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert (w.grad is None) == (v.grad is None)
        if v.grad is not None:
            torch.testing.assert_close(w.grad, v.grad)


def test_function_and_module_agree() -> None:
    for layers, bias, proj, bi in itertools.product((1, 2), (True, False), (0, 3), (True, False)):
        module = fusedlstm.LSTM(5, 7, layers, bias, proj_size=proj, bidirectional=bi)
        x: Tensor = torch.randn(4, 2, 5)
        y, _ = fusedlstm.lstm(
            x, None, list(module.parameters()), bias=bias, num_layers=layers, bidirectional=bi
        )
        assert torch.equal(y, module(x)[0])
