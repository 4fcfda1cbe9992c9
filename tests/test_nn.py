"""fusedlstm.LSTM is torch.nn.LSTM to whoever holds one: options, attributes, state_dict, copies, hooks."""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, vector_to_parameters

import fusedlstm

OPTIONS = [
    {
        "num_layers": L,
        "bias": bias,
        "batch_first": first,
        "dropout": 0.2 * (L - 1),
        "bidirectional": bi,
        "proj_size": P,
    }
    for L, bias, first, bi, P in itertools.product(
        (1, 2), (True, False), (True, False), (True, False), (0, 3)
    )
]


def pair(**options: Any) -> tuple[fusedlstm.LSTM, torch.nn.LSTM]:
    """One of ours and one of torch's, made from the same seed."""
    torch.manual_seed(1)
    ours = fusedlstm.LSTM(5, 7, **options)
    torch.manual_seed(1)
    return ours, torch.nn.LSTM(5, 7, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option(options: dict[str, Any]) -> None:
    ours, torchs = pair(**options)
    assert isinstance(ours, torch.nn.LSTM)
    assert repr(ours) == repr(torchs)
    assert {k: getattr(ours, k) for k in torchs.__constants__} == {
        k: getattr(torchs, k) for k in torchs.__constants__
    }
    assert [[w.shape for w in group] for group in ours.all_weights] == [
        [w.shape for w in group] for group in torchs.all_weights
    ]
    for (name, w), (other, v) in zip(ours.named_parameters(), torchs.named_parameters(), strict=True):
        assert name == other and torch.equal(w, v)
    assert torchs.load_state_dict(ours.state_dict()) == ours.load_state_dict(torchs.state_dict())
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_signatures_are_torchs() -> None:
    for ours, torchs, own in (
        (fusedlstm.LSTM, torch.nn.modules.rnn.RNNBase, [("recompute", False)]),
        (fusedlstm.LSTMCell, torch.nn.LSTMCell, []),
    ):
        names, defaults = (
            [(p.name, p.default) for p in inspect.signature(cls).parameters.values() if p.name != "mode"]
            for cls in (ours, torchs)
        )
        assert names == [*defaults, ("backend", "auto"), *own]


def test_positional_arguments_and_factory_options() -> None:
    module = fusedlstm.LSTM(5, 7, 2, False, True, 0.5, True, 3, "meta", torch.float64)
    assert (module.num_layers, module.bias, module.batch_first, module.dropout) == (2, False, True, 0.5)
    assert (module.bidirectional, module.proj_size) == (True, 3)
    assert (
        module.weight_hr_l1_reverse.device.type == "meta"
        and module.weight_hr_l1_reverse.dtype == torch.float64
    )


def test_dropout_on_one_layer_warns_as_torch_does() -> None:
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        fusedlstm.LSTM(5, 7, dropout=0.5)


def test_backend_is_named_in_repr_and_checked() -> None:
    assert repr(fusedlstm.LSTM(5, 7, backend="eager")) == "LSTM(5, 7, backend='eager')"
    with pytest.raises(ValueError, match=r"backend must be one of auto, .*got 'fast'"):
        fusedlstm.LSTM(5, 7, backend="fast")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype: torch.dtype) -> None:
    ours, _ = pair(num_layers=2)
    x = torch.randn(4, 3, 5)
    exact = ours.double()(x.double())[0]
    ours.half() if dtype == torch.float16 else ours.to(dtype)
    y, (h_n, c_n) = ours(x.to(dtype))
    assert {t.dtype for t in (y, h_n, c_n)} == {dtype}
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)
    y.sum().backward()
    assert all(w.grad.isfinite().all() for w in ours.parameters())


def test_meta_device() -> None:
    y, (h_n, c_n) = fusedlstm.LSTM(5, 7, device="meta")(torch.randn(4, 3, 5, device="meta"))
    assert y.shape == (4, 3, 7) and h_n.shape == c_n.shape == (1, 3, 7)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: _saved_and_loaded(module),
}


def _saved_and_loaded(module: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_copies_are_whole_and_apart(make: Callable[[Any], Any]) -> None:
    module = fusedlstm.LSTM(5, 7, 2, bidirectional=True, backend="eager")
    x = torch.randn(4, 3, 5)
    expected = module(x)[0]
    other = make(module)
    assert type(other) is fusedlstm.LSTM and other.backend == "eager"
    assert torch.equal(other(x)[0], expected)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
    assert torch.equal(module(x)[0], expected) and not torch.equal(other(x)[0], expected)


def test_a_module_pickled_before_backends_existed() -> None:
    module = fusedlstm.LSTM(5, 7)
    del module.__dict__["backend"]
    assert module(torch.randn(4, 3, 5))[0].shape == (4, 3, 7) and repr(module) == "LSTM(5, 7)"


@pytest.mark.parametrize(
    "parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm], ids=str
)
def test_parametrized_weights(parametrization: Callable[..., torch.nn.Module]) -> None:
    ours, torchs = pair()
    for module in (ours, torchs):
        torch.manual_seed(2)
        parametrization(module, "weight_hh_l0")
        module.eval()  # a power iteration at each look at the weight would tell how often it is looked at
    assert isinstance(ours, fusedlstm.LSTM) and ours.state_dict().keys() == torchs.state_dict().keys()
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5)
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(ours(x), torchs(x))
    for module in (ours, torchs):
        module(x)[0].square().sum().backward()
    for w, v in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(w.grad, v.grad)
    torch.testing.assert_close(copy.deepcopy(ours)(x), ours(x))
    parametrize.remove_parametrizations(ours, "weight_hh_l0")
    assert type(ours) is fusedlstm.LSTM
    torch.testing.assert_close(ours(x), torchs(x))


def test_a_weight_replaced_shared_or_made_by_a_function() -> None:
    ours, torchs = pair(num_layers=2)
    x, w = torch.randn(4, 3, 5), torch.nn.Parameter(torch.randn(28, 7) / 3)
    for module in (ours, torchs):
        module.weight_hh_l0 = module.weight_hh_l1 = w
    torch.testing.assert_close(ours(x), torchs(x))
    gradients = []
    for module in (ours, torchs):
        w.grad = None
        module(x)[0].square().sum().backward()
        gradients.append(w.grad)
    torch.testing.assert_close(*gradients)
    other = {"weight_ih_l0": torch.randn(28, 5)}
    torch.testing.assert_close(
        torch.func.functional_call(ours, other, (x,)), torch.func.functional_call(torchs, other, (x,))
    )
    for module in (ours, torchs):  # as hand-written weight dropping does
        made = module.weight_ih_l1.detach() * 2
        del module.weight_ih_l1
        module.weight_ih_l1 = made
    torch.testing.assert_close(ours(x), torchs(x))


def test_parameters_as_one_vector() -> None:
    ours, torchs = pair(num_layers=2)
    vector = parameters_to_vector(ours.parameters())
    assert torch.equal(vector, parameters_to_vector(torchs.parameters()))
    for module in (ours, torchs):
        vector_to_parameters(vector * 2, module.parameters())
        module.flatten_parameters()
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(ours(x), torchs(x))


def test_hooks_run_once_each_and_may_change_what_passes() -> None:
    module = fusedlstm.LSTM(5, 7)
    seen: list[str] = []

    def before(module: torch.nn.Module, arguments: tuple) -> tuple:
        seen.append("before")
        return (arguments[0] * 0,)

    def after(module: torch.nn.Module, arguments: tuple, output: Any) -> Any:
        seen.append("after")
        return output[0] + 1, output[1]

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after)
    module.register_full_backward_pre_hook(lambda module, dy: seen.append("backward before"))
    module.register_full_backward_hook(lambda module, dx, dy: seen.append(f"backward {tuple(dx[0].shape)}"))
    module.weight_hh_l0.register_hook(lambda grad: seen.append("weight"))
    module.weight_hh_l0.register_post_accumulate_grad_hook(lambda w: seen.append("accumulated"))
    x = torch.randn(4, 3, 5, requires_grad=True)
    y, _ = module(x)
    torch.testing.assert_close(y, torch.nn.LSTM.forward(module, x * 0)[0] + 1)
    y.sum().backward()
    assert sorted(seen) == [
        "accumulated", "after", "backward (4, 3, 5)", "backward before", "before", "weight",
    ]  # fmt: skip


def test_an_optimizer_learns() -> None:
    module, head = fusedlstm.LSTM(5, 16), torch.nn.Linear(16, 5)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], lr=0.02)
    ids = torch.arange(24).remainder(5).view(12, 2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        y, _ = module(ids[:-1])
        loss = torch.nn.functional.cross_entropy(head(y).flatten(0, 1), ids[1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.4 and losses[-1] < 0.1


def _cells(backend: str = "auto", **options: Any) -> tuple[fusedlstm.LSTMCell, torch.nn.LSTMCell]:
    ours, torchs = fusedlstm.LSTMCell(5, 7, backend=backend, **options), torch.nn.LSTMCell(5, 7, **options)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


@pytest.mark.parametrize("backend", [name for name, reason in fusedlstm.backends().items() if reason is None])
@pytest.mark.parametrize("bias", [True, False])
def test_cell(backend: str, bias: bool) -> None:
    ours, torchs = _cells(backend, bias=bias)
    assert isinstance(ours, torch.nn.LSTMCell) and repr(torchs) == repr(ours).replace(
        f", backend='{backend}'", ""
    )
    for shape in ((5,), (1, 5), (4, 5), (0, 5)):
        x, hx = torch.randn(shape), (torch.randn(*shape[:-1], 7), torch.randn(*shape[:-1], 7))
        torch.testing.assert_close(ours(x), torchs(x))
        torch.testing.assert_close(ours(x, hx), torchs(x, hx))
    results = []
    for module in (ours, torchs):
        state, x = None, torch.ones(4, 5, requires_grad=True)
        for _ in range(3):
            state = module(x, state)
        (state[0].sum() + state[1].square().sum()).backward()
        results.append([x.grad, *(w.grad for w in module.parameters())])
    torch.testing.assert_close(*results)
    assert type(pickle.loads(pickle.dumps(ours))) is type(copy.deepcopy(ours)) is fusedlstm.LSTMCell


def test_cell_takes_ids() -> None:
    ours, torchs = _cells()
    rows = torch.eye(5)
    torch.testing.assert_close(ours(torch.tensor([3, 0])), torchs(rows[[3, 0]]))
    torch.testing.assert_close(ours(torch.tensor(3)), torchs(rows[3]))


@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16], ids=str)
def test_cell_has_torchs_dtypes_under_autocast(state: torch.dtype) -> None:
    ours, torchs = _cells()
    hx: tuple[Tensor, Tensor] = (torch.randn(4, 7).to(state), torch.randn(4, 7).to(state))
    with torch.autocast("cpu", torch.bfloat16):
        for arguments in ((torch.randn(4, 5),), (torch.randn(4, 5), hx)):
            torch.testing.assert_close(ours(*arguments), torchs(*arguments))
