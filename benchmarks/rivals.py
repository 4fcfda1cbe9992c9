"""Others' LSTMs beside ours: a plain torch loop, torch.compile, NumPy, FlashRNN and Haste.

Each takes torch.nn.LSTM's parameters as they are, so that the same weights must give the same result.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import gpu_child
from benchmarks.contenders import Contender, Pass, shortened
from benchmarks.shapes import Row
from fusedlstm import reference

COMPILE_SECONDS = 60.0


class Stack(nn.LSTM):
    """torch.nn.LSTM's layers and directions around somebody's layer of one direction."""

    def layer(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Of x [T, B, I] and one direction's w_ih, w_hh, b_ih, b_hh: y [T, B, H], h_n and c_n [B, H]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        directions, last = 1 + self.bidirectional, []
        for k in range(self.num_layers):
            ys = []
            for d in range(directions):
                y, *states = self.layer(x.flip(0) if d else x, self.all_weights[k * directions + d])
                ys.append(y.flip(0) if d else y)
                last.append(states)
            x = torch.cat(ys, 2) if len(ys) > 1 else ys[0]
        h_n, c_n = (torch.stack(states) for states in zip(*last, strict=True))
        return x, (h_n, c_n)


class Loop(Stack):
    """What one writes by hand: torch.nn.LSTMCell's step in a Python loop, differentiated by autograd."""

    def layer(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[1], self.hidden_size)
        ys = []
        for x_t in x:
            h, c = torch.lstm_cell(x_t, (h, c), *weights)
            ys.append(h)
        return torch.stack(ys), h, c


class FlashRNN(Stack):
    """flashrnn 1.0.8: its function "lstm", one head, the gates in torch's order; x W_ih^T is torch's.

    Of its shapes those are asked for which torch's tensors have: T before B, rows of R the new units.
    """

    kernels = "cuda_fused"

    def layer(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        from flashrnn import FlashRNNConfig, flashrnn

        w_ih, w_hh, b_ih, b_hh = weights
        (T, B, _), H = x.shape, self.hidden_size
        config = FlashRNNConfig(
            backend=self.kernels, function="lstm", head_dim=H, num_heads=1, batch_size=B,
            dtype=str(x.dtype).removeprefix("torch."), input_shape="TBGHD", output_shape="STBHD",
        )  # fmt: skip
        gates = nn.functional.linear(x, w_ih, b_ih).view(T, B, 4, 1, H)
        states, last = flashrnn(gates, w_hh.view(4, 1, H, H), b_hh.view(4, 1, H), config=config)
        return states[0, :, :, 0], last[0, 0, :, 0], last[1, 0, :, 0]


class Haste(Stack):
    """haste-pytorch 0.5.0rc0: its LSTM, whose gates stand in the order i, g, f, o, in columns.

    The weights are brought into that order in every pass: their gradients are then torch's.
    """

    def layer(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        from haste_pytorch import LSTM

        w_ih, w_hh, b_ih, b_hh = weights
        w_ih, w_hh, bias = (_igfo(w) for w in (w_ih, w_hh, b_ih + b_hh))
        theirs = {"kernel": w_ih.t(), "recurrent_kernel": w_hh.t(), "bias": bias}
        with torch.device("meta"):  # its own weights are never used
            module = LSTM(x.shape[2], self.hidden_size).train(self.training)
        y, (h_n, c_n) = torch.func.functional_call(module, theirs, (x,))
        return y, h_n[0], c_n[0]


class NumPy(nn.LSTM):
    """The reference of fusedlstm, in float64."""

    def forward(self, x: Tensor) -> Any:
        y, h_n, c_n = _Reference.apply(self.num_layers, self.bidirectional, x, *self.parameters())
        return y, (h_n, c_n)


class _Reference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, num_layers: int, bidirectional: bool, *inputs: Tensor) -> Any:
        x, *weights = (t.double().numpy() for t in inputs)
        result = reference.forward(x, weights, num_layers=num_layers, bidirectional=bidirectional)
        ctx.result, ctx.dtype = result, inputs[0].dtype
        return tuple(torch.from_numpy(a).to(ctx.dtype) for a in (result.y, result.h_n, result.c_n))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = reference.backward(ctx.result, *(g.double().numpy() for g in grads))
        return None, None, *(torch.from_numpy(a).to(ctx.dtype) for a in (found.dx, *found.dweights))


def not_compiled(contender: Contender, row: Row) -> str:
    """Why torch.compile does not serve a row, as some steps of it tell, or nothing."""
    from torch._dynamo.utils import counters

    short = shortened(row)
    torch._dynamo.reset()
    counters.clear()
    began = time.perf_counter()
    Pass(short, contender)()
    seconds = (time.perf_counter() - began) * row.T / short.T
    if not counters["stats"]["unique_graphs"]:
        why = next(iter(counters["graph_break"]), "nothing was compiled")
        told = next((line for line in why.splitlines() if "Explanation:" in line), why.splitlines()[0])
        return f"runs as without compiling: {told.replace('Explanation:', '').strip()}"
    if seconds > COMPILE_SECONDS and row.T > short.T:
        return f"compiling would take {seconds:.0f} s, as T={short.T} tells"
    return ""


def absent(module: str, package: str, dtypes: Sequence[str], row: Row) -> str:
    """Why a package for GPUs cannot take a row, or nothing."""
    if not torch.cuda.is_available():
        return "its kernels need a GPU"
    if find_spec(module) is None:
        return f"is not installed: pip install {package}"
    return "" if row.dtype in dtypes else f"serves {', '.join(dtypes)}, not {row.dtype}"


def only_cpu(device: str, row: Row) -> str:
    return "" if device == "cpu" else "computes on a CPU"


def not_built(row: Row) -> str:
    """Why FlashRNN cannot take a row: it compiles for each shape, here in a process that can be stopped."""
    why = absent("flashrnn", "flashrnn", ("float32", "float16", "bfloat16"), row)
    if why:
        return why
    with tempfile.TemporaryDirectory() as folder:
        call = gpu_child.call("benchmarks.rivals", {"name": "flashrnn", "sizes": asdict(row)})
        return gpu_child.run(call, COMPILE_SECONDS, Path(folder) / "log").reason


def main(name: str, sizes: dict[str, Any]) -> None:
    """Runs one pass of a rival on a GPU.

    Args:
        name: as in RIVALS.
        sizes: of the row.
    """
    Pass(Row(**sizes), RIVALS["cuda"][name])()
    torch.cuda.synchronize()


def _igfo(w: Tensor) -> Tensor:
    i, f, g, o = w.chunk(4)
    return torch.cat((i, g, f, o))


def _rivals(device: str) -> dict[str, Contender]:
    compiled = Contender("torch.compile(torch.nn.LSTM)", nn.LSTM, device=device, wrap=torch.compile)
    no_haste = partial(absent, "haste_pytorch", "haste-pytorch", ("float32", "float64"))
    return {
        "compile": replace(compiled, refuses=partial(not_compiled, compiled), setup_seconds=COMPILE_SECONDS),
        "loop": Contender("a torch loop", Loop, device=device),
        "numpy": Contender("NumPy", NumPy, device=device, refuses=partial(only_cpu, device)),
        "flashrnn": Contender("FlashRNN", FlashRNN, device=device, refuses=not_built,
                              setup_seconds=COMPILE_SECONDS),
        "haste": Contender("Haste", Haste, device=device, refuses=no_haste),
    }  # fmt: skip


RIVALS = {device: _rivals(device) for device in ("cpu", "cuda")}
