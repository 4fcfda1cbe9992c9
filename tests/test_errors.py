"""Bad input: the kind of error that torch raises, in words that say what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fusedlstm
from cases import BACKENDS
from fusedlstm.ops import layer_bwd, layer_fwd

T, B, I, H = 3, 2, 5, 7  # noqa: E741


def x(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (T, B, I), **options)


def states(
    h: tuple[int, ...] = (1, B, H), c: tuple[int, ...] = (1, B, H), **options: Any
) -> tuple[Tensor, Tensor]:
    return torch.zeros(h, **options), torch.zeros(c, **options)


def packed(width: int = I, **options: Any) -> PackedSequence:
    return pack_sequence([x(3, width, **options), x(2, width, **options)])


# The arguments of forward, and what the error must say.
WRONG: dict[str, tuple[Callable[[], tuple], str]] = {
    "no steps": (lambda: (x(0, B, I),), r"at least one step, got T = 0"),
    "width": (lambda: (x(T, B, 6),), r"input_size = 5, got 6"),
    "4D": (lambda: (x(T, B, I, 1),), r"2D or 3D, got 4D"),
    "1D": (lambda: (x(I),), r"2D or 3D, got 1D"),
    "float64": (lambda: (x(dtype=torch.float64),), r"torch.float32.*got torch.float64.*\.to"),
    "float16": (lambda: (x(dtype=torch.float16),), r"torch.float32.*got torch.float16.*\.to"),
    "int32": (lambda: (x(dtype=torch.int32),), r"torch.float32.*got torch.int32"),
    "meta": (lambda: (x(device="meta"),), r"device of the weights, cpu, got meta"),
    "h0 width": (lambda: (x(), states(h=(1, B, 8))), r"hx\[0\].*\[1, 2, 7\], got \[1, 2, 8\]"),
    "h0 batch": (lambda: (x(), states(h=(1, 3, H))), r"hx\[0\].*\[1, 2, 7\], got \[1, 3, 7\]"),
    "c0 batch": (lambda: (x(), states(c=(1, 3, H))), r"hx\[1\].*\[1, 2, 7\], got \[1, 3, 7\]"),
    "c0 layers": (lambda: (x(), states(c=(2, B, H))), r"hx\[1\].*\[1, 2, 7\], got \[2, 2, 7\]"),
    "h0 2D": (lambda: (x(), states(h=(1, H))), r"hx must be 3D for batched input, got 2D"),
    "c0 3D unbatched": (
        lambda: (x(T, I), states(h=(1, H))),
        r"hx must be 2D for unbatched input, got 3D",
    ),
    "hx float64": (lambda: (x(), states(dtype=torch.float64)), r"hx\[0\].*torch.float32, got torch.float64"),
    "hx meta": (lambda: (x(), states(device="meta")), r"hx\[0\].*device of the weights, cpu, got meta"),
    "three states": (lambda: (x(), (*states(), x())), r"two states.*got 3"),
    "packed width": (lambda: (packed(6),), r"input_size = 5, got 6"),
    "packed float64": (lambda: (packed(dtype=torch.float64),), r"torch.float32.*got torch.float64"),
    "packed hx": (lambda: (packed(), states(h=(1, 3, H))), r"hx\[0\].*\[1, 2, 7\], got \[1, 3, 7\]"),
}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_raise_what_torch_raises(wrong: str, backend: str) -> None:
    arguments, message = WRONG[wrong]
    module = fusedlstm.LSTM(I, H, backend=backend)
    with pytest.raises(Exception) as torchs:
        torch.nn.LSTM(I, H)(*arguments())
    with pytest.raises(torchs.type, match=message):
        module(*arguments())


WRONG_CELL: dict[str, tuple[Callable[[], tuple], str]] = {
    "width": (lambda: (x(B, 6),), r"input_size = 5, got 6"),
    "3D": (lambda: (x(),), r"1D or 2D, got 3D"),
    "float64": (lambda: (x(B, I, dtype=torch.float64),), r"torch.float32.*got torch.float64"),
    "meta": (lambda: (x(B, I, device="meta"),), r"device of the weights, cpu, got meta"),
    "hx batch": (lambda: (x(B, I), states((3, H), (3, H))), r"\[1, 2, 7\], got \[1, 3, 7\]"),
    "hx width": (lambda: (x(B, I), states((B, 8), (B, 8))), r"\[1, 2, 7\], got \[1, 2, 8\]"),
    "hx 3D": (lambda: (x(B, I), states()), r"hx\[0\] must be 1D or 2D, got 3D"),
    "hx 1D": (lambda: (x(B, I), states((H,), (H,))), r"hx\[0\] must be 2D.*got 1D"),
    "hx 2D unbatched": (lambda: (x(I), states((1, H), (1, H))), r"hx\[0\] must be 1D.*got 2D"),
    "hx float64": (
        lambda: (x(B, I), states((B, H), (B, H), dtype=torch.float64)),
        r"float32, got torch.float64",
    ),
}


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("wrong", WRONG_CELL)
def test_wrong_arguments_of_a_cell_raise_what_torch_raises(wrong: str, backend: str) -> None:
    arguments, message = WRONG_CELL[wrong]
    module = fusedlstm.LSTMCell(I, H, backend=backend)
    with pytest.raises(Exception) as torchs:
        torch.nn.LSTMCell(I, H)(*arguments())
    with pytest.raises(torchs.type, match=message):
        module(*arguments())


CONSTRUCTORS: list[dict[str, Any]] = [
    {"dropout": 1.5}, {"dropout": True}, {"dropout": "much"}, {"bias": 1}, {"batch_first": 0}, {"input_size":
    0}, {"input_size": 2.0}, {"hidden_size": 0}, {"hidden_size": "7"}, {"num_layers": 0}, {"proj_size": -1},
    {"proj_size": 7},
]  # fmt: skip


@pytest.mark.parametrize("wrong", CONSTRUCTORS, ids=str)
def test_wrong_options_raise_what_torch_raises(wrong: dict[str, Any]) -> None:
    options = {"input_size": I, "hidden_size": H} | wrong
    with pytest.raises(Exception) as torchs:
        torch.nn.LSTM(**options)
    with pytest.raises(torchs.type):
        fusedlstm.LSTM(**options)


def test_inputs_that_are_no_tensor() -> None:
    with pytest.raises(TypeError, match="input must be a Tensor or a PackedSequence, got ndarray"):
        fusedlstm.LSTM(I, H)(np.zeros((T, B, I)))
    with pytest.raises(TypeError, match="hx must be Tensors, got ndarray"):
        fusedlstm.LSTM(I, H)(x(), (np.zeros((1, B, H)), np.zeros((1, B, H))))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
@pytest.mark.parametrize("ids", [[[0, I]], [[-1, 0]], [[2**62, 0]]], ids=str)
def test_ids_out_of_range(ids: list[list[int]], backend: str) -> None:
    with pytest.raises(IndexError, match=rf"0 <= id < I = 5, got ({max(ids[0])}|-1)"):
        fusedlstm.LSTM(I, H, backend=backend)(torch.tensor(ids))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_of_another_shape_or_dtype(backend: str) -> None:
    module = fusedlstm.LSTM(I, H, backend=backend)
    module.bias_hh_l0 = torch.nn.Parameter(torch.zeros(4 * H + 1))
    with pytest.raises(
        RuntimeError, match=None if backend == "torch" else r"b_hh must be \[4\*H\] = \[28\], got \[29\]"
    ):
        module(x())
    module.bias_hh_l0 = torch.nn.Parameter(torch.zeros(4 * H, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=None if backend == "torch" else r"one dtype.*float32.*float64"):
        module(x())


def test_weights_of_another_number() -> None:
    weights = list(fusedlstm.LSTM(I, H).parameters())
    with pytest.raises(RuntimeError, match=r"weights must be 4 .* 1 layers and 1 directions, got 3"):
        fusedlstm.lstm(x(), None, weights[:3])
    with pytest.raises(RuntimeError, match=r"weights must be 2 .* 1 layers and 1 directions, got 4"):
        fusedlstm.lstm(x(), None, weights, bias=False)
    with pytest.raises(RuntimeError, match=r"weights must be 4 .* got 0"):
        fusedlstm.lstm(x(), None, [])


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "torch"])
@pytest.mark.parametrize("sizes", [[2, 3], [2, 1, 1], [3, 2], [2, 2, 1, 0], [1, 2, 2]], ids=str)
def test_batch_sizes_that_do_not_fit(sizes: list[int], backend: str) -> None:
    broken = PackedSequence(x(5, I), torch.tensor(sizes))
    with pytest.raises(RuntimeError, match=r"batch_sizes must fall|hx\[0\] must be"):
        fusedlstm.LSTM(I, H, backend=backend)(broken, states())


def _layer() -> tuple[Any, ...]:
    """Arguments of layer_fwd without save and backend."""
    module = fusedlstm.LSTM(I, H)
    return x(T * B, I), None, *states(), [w.detach() for w in module.parameters()]


OP_ERRORS: dict[str, tuple[int, Any, str]] = {
    "x": (0, lambda: x(T * B, 6), r"x must be \[N, I\] with I = 5, got \[6, 6\]"),
    "rows": (0, lambda: x(5, I), r"T\*B rows with B = 2, got 5"),
    "x dtype": (0, lambda: x(T * B, I, dtype=torch.float64), r"one dtype and device"),
    "ids": (0, lambda: x(T * B, 1, dtype=torch.int64), r"ids \[N\], got \[6, 1\]"),
    "batch_sizes": (1, lambda: torch.tensor([2.0, 2.0, 2.0]), r"batch_sizes must be int64"),
    "h0": (2, lambda: x(B, H), r"h0 and c0 must be"),
    "c0": (3, lambda: x(1, 3, H), r"h0 and c0 must be"),
    "D": (2, lambda: x(3, B, H), r"D = 1 or 2"),
    "projection": (2, lambda: x(1, B, 4), r"weights must be 3, or 5 with biases"),
    "count": (4, lambda: [x(28, I)], r"weights must be 2, or 4 with biases, for each of D = 1.*got 1"),
    "w_hh": (4, lambda: [x(28, I), x(28, 6)], r"w_hh must be \[4\*H, P\] = \[28, 7\], got \[28, 6\]"),
}


@pytest.mark.parametrize("wrong", OP_ERRORS)
def test_the_op_checks_before_a_kernel_reads(wrong: str) -> None:
    place, value, message = OP_ERRORS[wrong]
    arguments = list(_layer())
    arguments[place] = value()
    with pytest.raises(RuntimeError, match=message):
        layer_fwd(*arguments, False, "eager")


def test_the_backward_op_checks_what_was_saved() -> None:
    layer = _layer()
    y, _, _, c, gates = layer_fwd(*layer, False, "eager")
    with pytest.raises(RuntimeError, match="save=True, got empty"):
        layer_bwd(y, None, None, *layer, y, c, gates, True, True, "eager")
    y, h_n, _, c, gates = layer_fwd(*layer, True, "eager")
    with pytest.raises(RuntimeError, match=r"dh_n must be \[1, 2, 7\].*got \[6, 7\]"):
        layer_bwd(y, y, None, *layer, y, c, gates, True, True, "eager")
    with pytest.raises(RuntimeError, match=r"gates must be \[1, 6, 28\].*got \[1, 6, 7\]"):
        layer_bwd(y, h_n, None, *layer, y, c, c, True, True, "eager")
