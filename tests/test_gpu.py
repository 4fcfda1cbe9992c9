"""The GPU backends on a card, against the reference and torch there; `make gpu` runs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusedlstm
from cases import CASES, Case, assert_close, ours
from fusedlstm.backends import why_not

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]
BACKENDS = ["triton"]
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


def test_cpu_tensors_are_refused() -> None:
    assert why_not(CASES[0].spec(torch.float32), "triton") is not None
    with pytest.raises(ValueError, match="cpu"):
        fusedlstm.LSTM(3, 8, backend="triton")(torch.randn(5, 2, 3))
