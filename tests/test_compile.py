"""torch.compile without a graph break, torch.export, and the import hook that lets them in."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.export import Dim

import fusedlstm
from cases import BACKENDS
from fusedlstm import functional
from fusedlstm.backends import load

registry = importlib.import_module("fusedlstm.backends")

OPS = [name for name in BACKENDS if name != "torch"]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    functional._resolve_cached.cache_clear()
    yield
    functional._resolve_cached.cache_clear()
    torch._dynamo.reset()


class Model(torch.nn.Module):
    """An LSTM among others, with its gradient."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.lstm = fusedlstm.LSTM(5, 7, **options)
        self.head = torch.nn.Linear(7 * (2 if self.lstm.bidirectional else 1), 3)

    def forward(self, x: torch.Tensor, hx: Any = None) -> Any:
        y, state = self.lstm(x, hx)
        return self.head(y), state


def step(model: Any, parameters: Any, x: torch.Tensor) -> list[Any]:
    """Outputs and gradients of two calls, the second of which goes on from the first."""
    parameters = list(parameters)
    y, (h, c) = model(x)
    z, (h, c) = model(x, (h, c))
    gradients = torch.autograd.grad(y.sum() + z.square().sum() + h.sum() + c.sum(), parameters)
    return [y, z, h, c, *gradients]


@pytest.mark.parametrize("backend", OPS)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str
)
def test_compile_in_one_graph(backend: str, compiler: str, options: dict[str, Any]) -> None:
    model = Model(backend=backend, **options)
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    for T in (3, 4, 6):  # the second length makes the graph's sizes symbolic
        x = torch.randn(T, T, 5)
        torch.testing.assert_close(step(compiled, model.parameters(), x), step(model, model.parameters(), x))
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], model(x)[0])


@pytest.mark.parametrize("case", ["auto", "ids", "unbatched", "autocast", "proj", "half", "cell", "function"])
def test_compile_other_calls(case: str) -> None:
    x: torch.Tensor = (
        torch.randint(5, (3, 2))
        if case == "ids"
        else torch.randn(3, 5)
        if case == "unbatched"
        else torch.randn(3, 2, 5)
    )
    module: Any = fusedlstm.LSTM(5, 7, proj_size=2 if case == "proj" else 0)
    if case == "half":
        module, x = module.half(), x.half()
    if case == "cell":
        module, x = fusedlstm.LSTMCell(5, 7), x[0]

    def call(x: torch.Tensor) -> Any:
        if case == "function":
            return fusedlstm.lstm(x, None, list(module.parameters()))
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            return module(x)

    found, expected = torch.compile(call, backend="aot_eager", fullgraph=True)(x), call(x)
    tolerance = {"rtol": 1e-2, "atol": 1e-3} if case == "half" else {}  # which ours sums in float32
    torch.testing.assert_close(found, expected, **tolerance)
    assert found[0].requires_grad


@pytest.mark.parametrize("why", ["slower", "missing"])
def test_what_auto_leaves_to_torch_is_compiled_as_ours(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "slower":
        monkeypatch.setattr(load(OPS[0]), "slower", lambda spec: "torch is faster", raising=False)
    else:
        monkeypatch.setitem(registry._reasons, "cpu", "not available here")
    module, x, graphs = fusedlstm.LSTM(5, 7), torch.randn(4, 3, 5), []
    assert "torch  runs" in fusedlstm.explain(module, x)

    def compiler(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch.testing.assert_close(torch.compile(module, backend=compiler, fullgraph=True)(x), module(x))
    ours = [node for graph in graphs for node in graph.graph.nodes if "layer_fwd" in str(node.target)]
    # torch's own could not be differentiated there.
    assert [node.args[6] for node in ours] == [OPS[0] if why == "slower" else "eager"]


def test_compile_with_inductor() -> None:
    module = fusedlstm.LSTM(5, 7)
    x = torch.randn(4, 3, 5)
    gradients = []
    for call in (torch.compile(module, fullgraph=True), module):
        y, _ = call(x)
        gradients.append([y, *torch.autograd.grad(y.sum(), list(module.parameters()))])
    torch.testing.assert_close(*gradients)


def test_torchs_own_lstm_is_still_left_out_of_graphs() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="LSTM"):
        torch.compile(torch.nn.LSTM(5, 7), backend="eager", fullgraph=True)(torch.randn(3, 2, 5))
    torch.compile(fusedlstm.LSTM(5, 7), backend="eager", fullgraph=True)(torch.randn(3, 2, 5))


@pytest.mark.parametrize("first", ["import torch._dynamo, fusedlstm", "import fusedlstm, torch._dynamo"])
def test_dynamo_may_be_imported_before_or_after(first: str) -> None:
    program = (
        f"{first}, sys, torch\n"
        "module = fusedlstm.LSTM(3, 4)\n"
        "torch.compile(module, backend='eager', fullgraph=True)(torch.randn(2, 1, 3))\n"
        "print(not torch._dynamo.config.allow_rnn)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("backend", OPS)
@pytest.mark.parametrize("strict", [False, True])
def test_export(backend: str, strict: bool) -> None:
    model = Model(num_layers=2, backend=backend)
    sizes = {"x": {0: Dim("T", min=2), 1: Dim("B", min=2)}}
    program = torch.export.export(model, (torch.randn(4, 3, 5),), dynamic_shapes=sizes, strict=strict)
    assert sum("layer_fwd" in str(node.target) for node in program.graph.nodes) == 2
    x = torch.randn(9, 2, 5)
    exported = program.module()
    torch.testing.assert_close(exported(x), model(x))
    found = torch.autograd.grad(exported(x)[0].sum(), list(exported.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(model(x)[0].sum(), list(model.parameters())))
