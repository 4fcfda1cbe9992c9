"""convert() replaces torch's modules wherever a model holds them; explain() and backends() say what runs."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence

import fusedlstm
from fusedlstm.backends import NAMES, Spec, load, resolve

registry = importlib.import_module(
    "fusedlstm.backends"
)  # as an attribute of the package, the name is a function


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(5, 7, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.rest = torch.nn.ModuleDict(
            {"a": torch.nn.Sequential(torch.nn.Linear(14, 5)), "cell": torch.nn.LSTMCell(5, 7)}
        )
        self.twice = self.first
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.rest["a"](self.twice(self.first(x)[0][..., :5])[0])
        h, c = self.rest["cell"](y[:, 0])
        return self.rest["cell"](y[:, 1], (h, c))[0]


def test_a_model_is_converted_in_place() -> None:
    model = Model().eval()
    x, weights = torch.randn(3, 4, 5), dict(model.named_parameters())
    expected = model(x)
    assert fusedlstm.convert(model) is model
    assert type(model.first) is fusedlstm.LSTM and model.twice is model.first
    assert type(model.rest["cell"]) is fusedlstm.LSTMCell and type(model.rest["a"][0]) is torch.nn.Linear
    torch.testing.assert_close(model(x), expected)
    assert {name: id(w) for name, w in model.named_parameters()} == {
        name: id(w) for name, w in weights.items()
    }
    assert (model.first.batch_first, model.first.dropout, model.first.training) == (True, 0.5, False)


def test_converting_twice_changes_nothing() -> None:
    model = fusedlstm.convert(Model())
    before = [id(module) for module in model.modules()]
    assert [id(module) for module in fusedlstm.convert(model).modules()] == before


@pytest.mark.parametrize("cls", [torch.nn.LSTM, torch.nn.LSTMCell])
def test_a_module_alone_comes_back_new_with_shared_weights(cls: Any) -> None:
    old = cls(5, 7)
    new = fusedlstm.convert(old, backend="eager")
    assert type(old) is cls and type(new) is getattr(fusedlstm, cls.__name__) and new.backend == "eager"
    assert all(w is v for w, v in zip(new.parameters(), old.parameters(), strict=True))
    x = torch.randn(3, 5)
    torch.testing.assert_close(new(x), old(x))
    new.weight_hh = new.weight_hh_l0 = torch.nn.Parameter(torch.zeros(28, 7))
    assert not any(w is new.weight_hh for w in old.parameters()) and old(x)[0].shape == new(x)[0].shape


def test_hooks_and_their_handles_move_along() -> None:
    model, seen = torch.nn.Sequential(torch.nn.LSTM(5, 7)), []
    handle = model[0].register_forward_hook(lambda module, arguments, output: seen.append(type(module)))
    fusedlstm.convert(model)(torch.randn(3, 5))
    handle.remove()
    model(torch.randn(3, 5))
    assert seen == [fusedlstm.LSTM]


def test_parametrized_modules_stay_so() -> None:
    model = torch.nn.Sequential(torch.nn.LSTM(5, 7))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    x = torch.randn(4, 3, 5)
    expected, keys = model(x), model.state_dict().keys()
    fusedlstm.convert(model)
    assert isinstance(model[0], fusedlstm.LSTM) and model.state_dict().keys() == keys
    torch.testing.assert_close(model(x), expected)
    torch.nn.utils.parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is fusedlstm.LSTM
    torch.testing.assert_close(model(x), expected)


def test_subclasses_compute_what_they_did() -> None:
    class Doubled(torch.nn.LSTM):
        def forward(self, *arguments: Any) -> Any:
            return 2 * super().forward(*arguments)[0]

    model = torch.nn.Sequential(Doubled(5, 7))
    assert type(fusedlstm.convert(model)[0]) is Doubled


def test_a_wrong_backend_is_told_before_anything_is_replaced() -> None:
    model = Model()
    with pytest.raises(ValueError, match="backend must be one of"):
        fusedlstm.convert(model, backend="fast")
    assert type(model.first) is torch.nn.LSTM


def spec(**changes: Any) -> Spec:
    return Spec(
        **({"device": "cpu", "dtype": torch.float32, "T": 4, "B": 3, "I": 5, "H": 7, "P": 7} | changes)
    )


def test_every_backend_says_whether_it_is_here() -> None:
    found = fusedlstm.backends()
    assert tuple(found) == NAMES and found["torch"] is found["eager"] is None


def test_a_backend_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._reasons, "cpu", "not available here: no engine")
    assert fusedlstm.backends()["cpu"] == "not available here: no engine"
    assert resolve(spec(), "auto") == "torch"
    for call in (lambda: resolve(spec(), "cpu"), lambda: load("cpu")):
        with pytest.raises(ValueError, match=r"'cpu'.* not available here: no engine"):
            call()
    assert resolve(spec(ids=True), "auto") == "eager"


def test_auto_leaves_to_torch_what_torch_does_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        supports = staticmethod(lambda spec: None if spec.dtype == torch.float32 else "serves float32")
        slower = staticmethod(lambda spec: "torch is 1.2 times as fast" if spec.B > 8 else None)

    monkeypatch.setitem(registry._modules, "cpu", Slow)
    assert resolve(spec(B=8), "auto") == "cpu" and resolve(spec(B=9), "auto") == "torch"
    assert resolve(spec(B=9), "cpu") == "cpu"  # asked for by name
    assert resolve(spec(B=9, ids=True), "auto") == "cpu"  # torch takes no ids
    assert resolve(spec(dtype=torch.float64), "auto") == "torch"
    text = fusedlstm.explain(fusedlstm.LSTM(5, 7), torch.randn(2, 9, 5))
    assert "cpu    torch is 1.2 times as fast" in text and "torch  runs" in text
    with pytest.raises(ValueError, match=r"'cpu' cannot serve this call: serves float32.*'auto'"):
        fusedlstm.LSTM(5, 7, dtype=torch.float64, backend="cpu")(torch.randn(2, 5, dtype=torch.float64))


def test_onednns_speed_counts_only_where_torch_uses_it() -> None:
    measured = {"T": 50, "B": 100, "H": 512, "P": 512, "L": 3}
    assert resolve(spec(**measured), "auto") == "torch"
    assert resolve(spec(**measured, packed=True), "auto") == "cpu"
    assert resolve(spec(**measured, resets=True), "auto") == "cpu"


def test_other_devices_try_torch_first() -> None:
    assert resolve(spec(device="cuda"), "auto") == "torch"
    assert resolve(spec(device="cuda", ids=True), "auto") == "eager"
    with pytest.raises(ValueError, match=r"no backend serves this call: torch: .*ids.*; eager: .*complex64"):
        resolve(spec(device="cuda", ids=True, dtype=torch.complex64), "auto")


def test_explain_names_the_call_and_every_backend() -> None:
    module = fusedlstm.LSTM(5, 7, 2, batch_first=True, backend="eager")
    lines = fusedlstm.explain(module, torch.randn(3, 4, 5)).splitlines()
    assert lines[0] == "LSTM: float32 on cpu, T=4 B=3 I=5 H=7 P=7 D=1 L=2 (bias, grad)"
    assert lines[1:3] == ["  eager  runs", "  cpu    'eager' was asked for"]
    assert lines[3].startswith("  cuda   ") and lines[4].startswith("  triton ")
    assert lines[5:] == ["  torch  'eager' was asked for"]
    packed = pack_sequence([torch.tensor([1, 2, 0]), torch.tensor([4])])
    with torch.no_grad():
        assert "T=3 B=2 I=5 H=7 P=7 D=1 L=2 (bias, ids, packed)\n" in fusedlstm.explain(module, packed)
    assert "T=3 B=1 " in fusedlstm.explain(module, torch.randn(3, 5))
    assert "LSTMCell: float32 on cpu, T=1 B=4 I=5 H=7" in fusedlstm.explain(
        fusedlstm.LSTMCell(5, 7), torch.randn(4, 5)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert "bfloat16 on cpu" in fusedlstm.explain(module, torch.randn(3, 4, 5))
        assert "torch  runs" in fusedlstm.explain(fusedlstm.LSTMCell(5, 7), torch.randn(4, 5))
    with pytest.raises(TypeError, match="got LSTM: convert"):
        fusedlstm.explain(torch.nn.LSTM(5, 7), torch.randn(3, 5))
