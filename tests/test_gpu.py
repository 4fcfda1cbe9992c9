"""The GPU backends on a card, against the reference and torch there; `make gpu` runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fusedlstm
from cases import CASES, Case, assert_close, ours
from fusedlstm.backends import why_not
from fusedlstm.generate import Generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
BACKENDS = ["cuda", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Beyond what the interpreter runs in time: sizes at which several programs share the hidden units.
LARGE = [
    Case(50, 100, 65, 512), Case(33, 16, 32, 768), Case(20, 300, 16, 128), Case(20, 64, 16, 1024),
    Case(9, 7, 8, 2048), Case(33, 17, 8, 640, bi=True, packed="unsorted"), Case(20, 33, 70, 300, ids=True),
]  # fmt: skip


# The largest first: every size is compiled anew, and `make gpu` stops at its deadline.
SMALL = [case for case in CASES if not case.proj]
PARITY = [
    *((dtype, case) for case in LARGE for dtype in DTYPES),
    *((torch.float32, case) for case in SMALL),
    *((dtype, case) for case in SMALL if case.bi or case.packed for dtype in DTYPES[1:]),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "case"), PARITY, ids=str)
def test_outputs_and_gradients(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, case: Case
) -> None:
    if why := fusedlstm.backends()[backend]:
        pytest.skip(why)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = ours(case, dtype, backend, "cuda")
    assert_close(found, case, dtype, "cuda", roundings=8 if dtype == torch.float32 else 1)
    again = ours(case, dtype, backend, "cuda")
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=f"{name} differs between two runs")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cuda_graph_captures_the_layer(backend: str) -> None:
    if why := fusedlstm.backends()[backend]:
        pytest.skip(why)
    lstm = fusedlstm.LSTM(16, 64, device="cuda", dtype=torch.bfloat16, backend=backend).requires_grad_(False)
    x = torch.randn(5, 3, 16, device="cuda", dtype=torch.bfloat16)
    expected = lstm(x)[0].clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = lstm(x)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.parametrize(
    ("H", "L", "V", "B"), [(512, 2, 65, 1), (128, 3, 96, 4), (700, 3, 101, 1), (33, 1, 7, 8)]
)
def test_a_text_is_the_one_that_the_cpu_writes(H: int, L: int, V: int, B: int) -> None:
    if why := fusedlstm.backends()["cuda"]:
        pytest.skip(why)
    torch.manual_seed(0)
    lstm, decoder = torch.nn.LSTM(V, H, L), torch.nn.Linear(H, V)
    with torch.no_grad():
        decoder.weight.mul_(20)  # wide logits: few ties for rounding to break
    texts = {}
    for device in ("cpu", "cuda"):
        lstm.to(device), decoder.to(device)
        writer = Generator(lstm.all_weights, decoder.weight, decoder.bias, B, seed=3)
        writer.read(torch.arange(5 * B, device=device).view(5, B) % V)
        texts[device] = torch.cat([writer.generate(n, 0.8, top_k=5).cpu() for n in (1, 99)])
    assert (texts["cpu"] == texts["cuda"]).float().mean() > 0.9


@pytest.fixture
def step_regime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of graphs, empty, with every call of the Triton backend served by single steps."""
    if why := fusedlstm.backends()["triton"]:
        pytest.skip(why)
    from fusedlstm.backends import triton
    from fusedlstm.backends.triton import graphs

    def choose(B: int, H: int, D: int, dtype: torch.dtype, device: torch.device, way: str) -> Any:
        plans = triton._key(B, H, D, dtype, device, way).plans()
        return next(plan for plan in plans if plan.regime == "step")

    monkeypatch.setattr(triton, "choose", choose)
    graphs._graphs.clear()
    yield graphs
    graphs._graphs.clear()


GRAPHS = [Case(40, 20, 16, 160, bi=True, packed="unsorted"), Case(70, 3, 9, 33, ids=True, resets=True)]


@pytest.mark.parametrize("case", GRAPHS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_graphs_of_steps(
    monkeypatch: pytest.MonkeyPatch, step_regime: Any, dtype: torch.dtype, case: Case
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = [ours(case, dtype, "triton", "cuda") for _ in range(2)]
    assert len(step_regime._graphs) >= 2
    with torch.cuda.stream(torch.cuda.Stream()):
        found.append(ours(case, dtype, "triton", "cuda"))
        torch.cuda.synchronize()
    monkeypatch.setattr(step_regime, "capturable", lambda device: False)
    plain = ours(case, dtype, "triton", "cuda")
    assert_close(plain, case, dtype, "cuda", roundings=8 if dtype == torch.float32 else 1)
    for results in found:
        for name, values in plain.items():
            np.testing.assert_array_equal(values, results[name], err_msg=name)


def test_a_new_length_captures_nothing(step_regime: Any) -> None:
    lstm = fusedlstm.LSTM(8, 64, device="cuda", dtype=torch.bfloat16, backend="triton").requires_grad_(False)
    for T in (32, 100, 17, 1000):
        with torch.inference_mode(T == 32):  # whoever comes first leaves no mark on the graph
            lstm(torch.randn(T, 3, 8, device="cuda", dtype=torch.bfloat16))
        assert len(step_regime._graphs) == 1
    lstm(torch.randn(32, 5, 8, device="cuda", dtype=torch.bfloat16))  # the same blocks: nor a new batch
    assert len(step_regime._graphs) == 1


def test_plans_are_timed_once_and_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if why := fusedlstm.backends()["triton"]:
        pytest.skip(why)
    from fusedlstm.backends import triton
    from fusedlstm.backends.triton import tuning

    monkeypatch.setenv("FUSEDLSTM_AUTOTUNE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuning, "_chosen", {})
    device = torch.device("cuda", torch.cuda.current_device())
    chosen = triton.choose(16, 128, 1, torch.bfloat16, device, "forward")
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    timed = json.loads(file.read_text())["timed"]
    print({plan["plan"]["regime"]: plan["ms"] for plan in timed})
    assert all(0 < plan["ms"] < 100 for plan in timed)
    monkeypatch.setattr(tuning, "_chosen", {})
    monkeypatch.setattr(tuning, "milliseconds", lambda run: pytest.fail("it was timed again"))
    assert triton.choose(16, 128, 1, torch.bfloat16, device, "forward") == chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_cpu_tensors_are_refused(backend: str) -> None:
    if why := fusedlstm.backends()[backend]:
        pytest.skip(why)
    assert why_not(CASES[0].spec(torch.float32), backend) is not None
    with pytest.raises(ValueError, match="cpu"):
        fusedlstm.LSTM(3, 8, backend=backend)(torch.randn(5, 2, 3))
