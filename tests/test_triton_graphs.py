"""The graphs of the "step" regime on the CPU: a fake keeps the launches of a capture and makes them again."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cases import Case, assert_close, ours

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/test_gpu.py captures its graphs", allow_module_level=True)

from triton.runtime import interpreter

from fusedlstm.backends import triton
from fusedlstm.backends.triton import graphs
from triton_backend import TF32X3_ROUNDINGS, layer_call, on_the_cpu, use  # noqa: F401

CASES = [
    Case(10, 3, 5, 5, bi=True, packed="unsorted"),
    Case(9, 3, 4, 17, bi=True, ids=True, bias=False, resets=True),
]


class GPU:
    """What the backend sees of a card: a current stream, and graphs that keep launches."""

    def __init__(self) -> None:
        self.stream, self.captures, self.replays = 1, 0, 0
        self.recorded: list[Callable[[], None]] | None = None
        gpu = self

        class Graph:
            def capture_begin(self, capture_error_mode: str) -> None:
                assert capture_error_mode == "thread_local" and gpu.recorded is None
                gpu.captures += 1
                gpu.recorded = self.launches = []

            def capture_end(self) -> None:
                gpu.recorded = None

            def replay(self) -> None:
                gpu.replays += 1
                for launch in self.launches:
                    launch()

        self.Graph = Graph

    def counts(self) -> tuple[int, int]:
        found, self.captures, self.replays = (self.captures, self.replays), 0, 0
        return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[GPU]:
    found, execute = GPU(), interpreter.GridExecutor.__call__

    def launch(self: Any, *args: Any, **kwargs: Any) -> None:
        if found.recorded is None:
            execute(self, *args, **kwargs)
        else:
            found.recorded.append(lambda: execute(self, *args, **kwargs))

    def current(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(device=device, cuda_stream=found.stream)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    monkeypatch.setattr(graphs, "capturable", lambda device: found.recorded is None)
    monkeypatch.setattr(torch.cuda, "current_stream", current)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", found.Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(graphs, "LAUNCHES", 4)  # the interpreter is slow
    use(monkeypatch, "step")
    graphs._graphs.clear()
    yield found
    graphs._graphs.clear()


def plain(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as without:
        without.setattr(graphs, "capturable", lambda device: False)
        return call()


def same(found: Any, expected: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("case", "dtype"), [*zip(CASES, (torch.float32, torch.bfloat16), strict=True)], ids=str
)
def test_graphs_compute_what_plain_launches_do(
    monkeypatch: pytest.MonkeyPatch, gpu: GPU, case: Case, dtype: torch.dtype
) -> None:
    found = ours(case, dtype, "triton")
    assert gpu.counts() == (2, 2 * (case.T // graphs.LAUNCHES) - 2)  # a first block is launched, not replayed
    assert_close(found, case, dtype, roundings=TF32X3_ROUNDINGS if dtype == torch.float32 else 1)
    again, without = ours(case, dtype, "triton"), plain(monkeypatch, lambda: ours(case, dtype, "triton"))
    assert gpu.counts() == (0, 2 * (case.T // graphs.LAUNCHES))
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)
        np.testing.assert_array_equal(values, without[name], err_msg=name)


@pytest.mark.parametrize(("T", "blocks"), [(1, 0), (3, 0), (4, 1), (11, 2), (12, 3)])
def test_a_new_length_captures_nothing(
    monkeypatch: pytest.MonkeyPatch, gpu: GPU, T: int, blocks: int
) -> None:
    triton.layer_forward(*layer_call(H=5, T=4), True)
    assert gpu.counts() == (1, 0)
    call = layer_call(H=5, T=T)
    found = triton.layer_forward(*call, True)
    assert gpu.counts() == (0, blocks)
    same(found, plain(monkeypatch, lambda: triton.layer_forward(*call, True)))


def test_a_replay_leaves_what_an_earlier_one_saved(monkeypatch: pytest.MonkeyPatch, gpu: GPU) -> None:
    first, second = layer_call(H=5, T=9), layer_call(H=5, T=9)
    second[0].neg_()
    saved = triton.layer_forward(*first, True)
    triton.layer_forward(*second, True)
    expected = plain(monkeypatch, lambda: triton.layer_forward(*first, True))
    same(saved, expected)
    y, h_n, c_n, c, gates = saved
    gradients = [
        call()
        for call in (
            lambda: triton.layer_backward(y, h_n, c_n, *first, y, c, gates, True, True),
            lambda: plain(
                monkeypatch,
                lambda: triton.layer_backward(y, h_n, c_n, *first, y, c, gates, True, True),
            ),
        )
    ]
    same((*gradients[0][:3], *gradients[0][3]), (*gradients[1][:3], *gradients[1][3]))


def test_streams_have_graphs_of_their_own_and_the_oldest_goes(
    monkeypatch: pytest.MonkeyPatch, gpu: GPU
) -> None:
    monkeypatch.setattr(graphs, "MOST", 2)
    call = layer_call(H=5, T=4)
    for stream, captures in [(1, 1), (2, 1), (1, 0), (3, 1), (1, 0), (2, 1)]:
        gpu.stream = stream
        triton.layer_forward(*call, True)
        assert gpu.counts()[0] == captures, f"stream {stream}"
    assert len(graphs._graphs) == 2
    tables = {found.table.data_ptr() for found in graphs._graphs.values()}
    assert len(tables) == 2


def test_a_graph_of_inference_mode_serves_training(gpu: GPU) -> None:
    call = layer_call(H=5, T=8)
    with torch.inference_mode():
        expected = triton.layer_forward(*call, True)
    assert not any(found.table.is_inference() for found in graphs._graphs.values())
    same(triton.layer_forward(*call, True), expected)
    assert gpu.counts() == (1, 3)


def test_threads_of_one_stream_wait_for_each_other(monkeypatch: pytest.MonkeyPatch, gpu: GPU) -> None:
    calls = [layer_call(H=5, T=8) for _ in range(3)]
    for k, call in enumerate(calls):
        call[0].mul_(k + 1)
    expected = [plain(monkeypatch, lambda call=call: triton.layer_forward(*call, True)) for call in calls]
    found: dict[int, Any] = {}

    def work(k: int) -> None:
        found[k] = triton.layer_forward(*calls[k], True)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        same(found[k], expected[k])
    assert gpu.counts() == (1, 5)


def test_tensors_that_start_anywhere_are_served_by_plain_launches(gpu: GPU) -> None:
    x, sizes, h0, c0, (w_ih, w_hh, *biases) = layer_call(H=5, T=4)
    odd = torch.cat((torch.zeros(1), w_hh.flatten()))[1:].view_as(w_hh)
    assert odd.data_ptr() % 16
    expected = triton.layer_forward(x, sizes, h0, c0, [w_ih, w_hh, *biases], True)
    assert gpu.counts() == (1, 0)
    same(triton.layer_forward(x, sizes, h0, c0, [w_ih, odd, *biases], True), expected)
    assert gpu.counts() == (0, 0)


def test_what_cannot_be_captured_keeps_no_graph(monkeypatch: pytest.MonkeyPatch, gpu: GPU) -> None:
    def refuse(self: Any) -> None:
        gpu.recorded = None
        raise RuntimeError("the capture failed")

    monkeypatch.setattr(gpu.Graph, "capture_end", refuse)
    with pytest.raises(RuntimeError, match="capture failed"):
        triton.layer_forward(*layer_call(H=5, T=4), True)
    assert not graphs._graphs


def test_nothing_is_captured_where_somebody_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert graphs.capturable(torch.device("cuda")) and not graphs.capturable(torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not graphs.capturable(torch.device("cuda"))
