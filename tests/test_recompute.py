"""recompute=True: gates made again in the backward, by every backend, within the same tolerance."""

from __future__ import annotations

import pytest
import torch

import fusedlstm
from cases import BACKENDS, CASES, Case, assert_close, run
from fusedlstm.backends import products, why_not
from fusedlstm.ops import layer_fwd

SOME = [
    case for case in CASES if case.bi or case.packed or case.ids or case.resets or case.proj or not case.bias
]


def module(case: Case, dtype: torch.dtype, backend: str) -> fusedlstm.LSTM:
    return fusedlstm.LSTM(case.I, case.H, **case.options(), dtype=dtype, backend=backend, recompute=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
@pytest.mark.parametrize("case", SOME, ids=str)
def test_outputs_and_gradients(case: Case, backend: str, dtype: torch.dtype) -> None:
    if why := why_not(case.spec(dtype), backend):
        pytest.skip(why)
    assert_close(run(module(case, dtype, backend), case), case, dtype)


def test_more_rows_than_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(7, 5, 9, 33, bi=True, packed="unsorted")
    monkeypatch.setattr(products, "_ROWS_AT_ONCE", 4)
    assert_close(run(module(case, torch.float32, "eager"), case), case, torch.float32)


def kept_bytes(lstm: torch.nn.LSTM, x: torch.Tensor) -> int:
    """What a forward keeps beside the weights and its input."""
    kept: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        alive = lstm(x)
    own = {t.untyped_storage().data_ptr() for t in (x, *lstm.parameters())}
    del alive
    return sum(size for address, size in kept.items() if address not in own)


@pytest.mark.parametrize("backend", ["eager", "cpu"])
def test_a_layer_keeps_two_numbers_instead_of_six(backend: str) -> None:
    T, B, H = 50, 16, 64
    x = torch.randn(T, B, H, requires_grad=True)
    states = 2 * B * H * 4  # h0 and c0 may be one tensor of zeros, or two
    for recompute, numbers in ((False, 6), (True, 2)):
        bytes_ = kept_bytes(fusedlstm.LSTM(H, H, backend=backend, recompute=recompute), x)
        assert 0 <= bytes_ - numbers * T * B * H * 4 <= states


def test_the_gates_are_those_of_the_forward() -> None:
    torch.manual_seed(1)
    weights = [torch.randn(*shape) / 4 for shape in ((40, 3), (40, 10), (40,), (40,))]
    x, state = torch.randn(12, 3), torch.randn(1, 3, 10)
    fresh = torch.rand(1, 12) < 0.3
    y, _, _, _, gates = layer_fwd(x, None, state, state, weights, True, "eager", fresh)
    torch.testing.assert_close(products.recomputed_gates(x, None, state, weights, y, fresh), gates)


def test_torchs_own_lstm_does_not_serve_it() -> None:
    x = torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match="recompute=True"):
        fusedlstm.LSTM(3, 8, backend="torch", recompute=True)(x)
    with torch.no_grad():  # nothing is kept anyway
        fusedlstm.LSTM(3, 8, backend="torch", recompute=True)(x)
    assert "recompute" in fusedlstm.explain(fusedlstm.LSTM(3, 8, recompute=True), x)
    assert "recompute=True" in repr(fusedlstm.LSTM(3, 8, recompute=True))


def test_derivatives_and_compilers() -> None:
    lstm = fusedlstm.LSTM(3, 4, dtype=torch.float64, recompute=True)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: lstm(x)[0], x)
    assert torch.autograd.gradgradcheck(lambda x: lstm(x)[0], x)
    plain = fusedlstm.LSTM(3, 4, dtype=torch.float64)
    plain.load_state_dict(lstm.state_dict())
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    grads = []
    for run_ in (compiled, plain):
        x.grad = None
        run_(x)[0].sum().backward()
        grads.append(x.grad.clone())
    torch.testing.assert_close(*grads)
