"""Whole steps of the char-LM as `fusedlstm train` makes them, against the same steps on torch.nn.LSTM.

A transformer of about as many parameters takes the same steps beside them: another model, which tells what
such a step costs and takes no part in the check of losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.contenders import ON
from benchmarks.device import multiplies
from benchmarks.titles import PLAIN
from fusedlstm.backends import resolve
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.optim import optimizer_for
from fusedlstm.charlm.run import train_step
from fusedlstm.charlm.settings import Settings
from fusedlstm.charlm.streams import Streams
from fusedlstm.charlm.texts import TEXTS
from fusedlstm.functional import spec
from fusedlstm.nn import LSTM
from fusedlstm.timing import Context, Runner, interleave, once, summary

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "float16", "bfloat16")}
GPT_LAYERS, GPT_WIDTHS = range(4, 9), range(32, 769, 32)
PROBE_T = 4  # steps in time: bfloat16 with oneDNN off takes a minute at 100
# Largest relative difference of the loss from torch's in float32, smoothed over TAIL steps.
AGREE = {"float32": 0.01, "float16": 0.02, "bfloat16": 0.02}
TAIL = 10


class OneHotLM(CharLM):
    """The same network with torch.nn.LSTM, which reads one-hot rows."""

    def __init__(self, vocab_size: int, rnn_size: int, num_layers: int) -> None:
        super().__init__(vocab_size, rnn_size, num_layers)
        lstm = nn.LSTM(vocab_size, rnn_size, num_layers)
        lstm.load_state_dict(self.lstm.state_dict())
        self.lstm = cast(Any, lstm)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        one_hot = nn.functional.one_hot(ids, self.lstm.input_size).float()
        y, state = cast(Any, self.lstm)(one_hot, state)
        return self.decoder(y), state


class GPT(nn.Module):
    """A small decoder-only transformer with learned positions; it reads each chunk afresh, without a state.

    Args:
        V: distinct characters.
        T: longest chunk.
        layers: blocks of attention and two linear maps.
        width: of the residual stream, in heads of 32.
    """

    def __init__(self, V: int, T: int, layers: int, width: int) -> None:
        super().__init__()
        self.layers, self.width = layers, width
        self.token, self.place = nn.Embedding(V, width), nn.Embedding(T, width)
        block = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(block, layers, norm, enable_nested_tensor=False)
        self.decoder = nn.Linear(width, V)
        for weight in (p for p in self.parameters() if p.dim() > 1):
            nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Ids [T, B]; returns logits [T, B, V], and nothing to carry on."""
        T = len(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=ids.device)
        y = self.blocks(self.token(ids) + self.place.weight[:T, None], mask, is_causal=True)
        return self.decoder(y), (y.new_zeros(1, ids.shape[1], 0),)


@dataclass(frozen=True)
class Net:
    """What is trained: sizes, and the text as it falls into chunks of inputs and targets [T, B]."""

    H: int
    L: int
    B: int
    T: int
    V: int

    def streams(self, device: str) -> Streams:
        """The standard library's source, of which only the V commonest bytes are kept, on the device."""
        text = TEXTS["stdlib"]()
        rare = np.argsort(-np.bincount(np.frombuffer(text, np.uint8), minlength=256))[self.V :]
        kept = Corpus.from_bytes("stdlib", text.translate(None, bytes(rare.tolist())))
        return Streams(kept.ids, self.B, device)

    def ours(self, device: str = "cpu") -> CharLM:
        """The trainer's model, on the backend that the layer is measured with."""
        model = CharLM(self.V, self.H, self.L)
        model.lstm.backend = cast(LSTM, ON[device]["ours"].lstm(1, 1)).backend
        return model

    def torchs(self) -> OneHotLM:
        return OneHotLM(self.V, self.H, self.L)

    def gpt(self) -> GPT:
        """The transformer, of a usual depth and width, that comes nearest to the LSTM in parameters."""
        lstm = count(self.ours())
        sizes = product(GPT_LAYERS, GPT_WIDTHS)
        return GPT(self.V, self.T, *min(sizes, key=lambda size: abs(self.gpt_parameters(*size) - lstm)))

    def gpt_parameters(self, layers: int, width: int) -> int:
        """Of a GPT: each block has 12 squares of its width, biases and norms; then embeddings and decoder."""
        return layers * (12 * width + 13) * width + (self.V + self.T + 2) * width + (width + 1) * self.V


class Training:
    """A model in training; each call is one step."""

    def __init__(
        self, net: Net, new: Callable[[], nn.Module], dtype: str, device: str, streams: Streams
    ) -> None:
        torch.manual_seed(1)
        self.T, self.dtype, self.streams = net.T, getattr(torch, dtype), streams
        sizes = {"rnn_size": net.H, "num_layers": net.L, "batch_size": net.B, "seq_length": net.T}
        self.settings = Settings().but(sizes | {"dtype": dtype, "device": device})
        self.model = cast(CharLM, new().to(device))
        self.optimizer = optimizer_for(self.model, self.settings)
        self.state: State | None = None
        self.losses: list[float] = []

    def __call__(self) -> None:
        x, y = self.streams.chunk(len(self.losses) * self.T, self.T)
        loss, self.state = train_step(self.model, self.optimizer, x, y, self.state, self.settings)
        self.losses.append(loss)


def measure(net: Net, steps: int, device: str = "cpu") -> dict[str, Any]:
    """Trains all in every dtype, step by step in turn; if the losses of ours differ there are no times.

    Args:
        net: what is trained.
        steps: of training, each of them timed.
        device: "cpu" or "cuda".
    """
    dtypes = [dtype for dtype in DTYPES[device] if multiplies(dtype, device)]
    streams = net.streams(device)
    gpt = net.gpt()
    found: dict[str, Any] = {"H": net.H, "L": net.L, "B": net.B, "T": net.T, "V": net.V, "steps": steps}
    found["parameters"] = count(net.ours())
    found["gpt"] = {"layers": gpt.layers, "width": gpt.width, "parameters": count(gpt)}
    found["torch_setting"] = {dtype: _faster_setting(net, dtype, device, streams) for dtype in dtypes}
    trainings: dict[str, Training] = {}
    runners: dict[str, Runner] = {}
    for dtype in dtypes:
        faster = settings(device)[found["torch_setting"][dtype]["taken"]]
        for name, new, context in (
            ("ours", lambda: net.ours(device), nullcontext),
            ("torch", net.torchs, faster),
            ("gpt", net.gpt, nullcontext),
        ):
            trainings[f"{name} {dtype}"] = training = Training(net, new, dtype, device, streams)
            runners[f"{name} {dtype}"] = Runner(training, cast(Context, context))
    found["auto"] = {dtype: _auto(net, trainings[f"ours {dtype}"], device) for dtype in dtypes}
    seconds = interleave(runners, 0.0, steps, device=device)
    found["losses"] = {name: training.losses for name, training in trainings.items()}
    found["agreement"] = {
        dtype: _agreement(trainings[f"ours {dtype}"].losses, trainings["torch float32"].losses, dtype)
        for dtype in dtypes
    }
    if all(agreement["ok"] for agreement in found["agreement"].values()):
        ms = {name: summary(values) for name, values in seconds.items()}
        found["ms"] = ms
        found["chars_per_s"] = {name: 1e3 * net.B * net.T / times["p50"] for name, times in ms.items()}
        pairs = [(dtype, dtype) for dtype in dtypes] + [(dtype, "float32") for dtype in dtypes[1:]]
        found["ratio"] = {
            f"ours {a} to torch {b}": ms[f"torch {b}"]["p50"] / ms[f"ours {a}"]["p50"] for a, b in pairs
        }
    return found


def main(
    rnn_size: int = 512,
    num_layers: int = 2,
    batch_size: int = 100,
    seq_length: int = 100,
    vocab_size: int = 65,
    steps: int = 40,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Measures training steps and adds them to this machine's record.

    Args:
        rnn_size: hidden units H.
        num_layers: layers L.
        batch_size: streams B.
        seq_length: steps in time T of each stream and training step.
        vocab_size: distinct characters V.
        steps: of training, each of them timed.
        device: cpu or cuda.
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
    """
    net = Net(rnn_size, num_layers, batch_size, seq_length, vocab_size)
    machine = results.machine(device)
    out = out or results.path_for(machine)
    results.check(out, machine)
    found = measure(net, steps, device)
    results.add(out, machine, "train", f"{net.L}x{net.H}", found)
    for dtype, agreement in found["agreement"].items():
        print(f"{dtype}: {agreement}; torch {found['torch_setting'][dtype]}")
    for name, ms in found.get("ms", {}).items():
        print(f"{name}: {ms['p50']:.1f} ms a step, {found['chars_per_s'][name]:,.0f} chars/s")
    for pair, ratio in found.get("ratio", {}).items():
        print(f"{pair}: {ratio:.2f}")
    print(f"written to {out}")


def settings(device: str) -> dict[str, Context]:
    """Those of torch.nn.LSTM, by the words of the report."""
    return {"as it comes": ON[device]["torch"].context, PLAIN[device]: ON[device]["torch_plain"].context}


def count(model: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in model.parameters())


def _auto(net: Net, training: Training, device: str) -> str:
    """The backend that `fusedlstm train` takes by itself."""
    weights = list(training.model.lstm.parameters())
    with torch.autocast(device, training.dtype, enabled=training.dtype != torch.float32):
        return resolve(spec(weights, net.T, net.B, True, net.L, False, True, False, True), "auto")


def _faster_setting(net: Net, dtype: str, device: str, streams: Streams) -> dict[str, Any]:
    """torch's faster setting, by a few time steps; then by whole training steps, unless one is far behind.

    A setting that raises (oneDNN does on processors without bfloat16) is left out, and says why.
    """
    refused: dict[str, str] = {}

    def seconds(T: int, names: Iterable[str]) -> dict[str, float]:
        shorter, found = replace(net, T=T), dict[str, float]()
        trainings = {name: Training(shorter, net.torchs, dtype, device, streams) for name in names}
        # Twice in turns: a neighbour that takes the machine for a moment shall not choose.
        for name, training in 2 * list(trainings.items()):
            try:
                taken = once(Runner(training, contexts[name]), device)
            except RuntimeError as error:
                refused[name] = str(error).splitlines()[0][:200]
            else:
                found[name] = min(taken, found.get(name, taken))
        return found

    contexts = settings(device)
    T = min(net.T, PROBE_T)
    found = seconds(T, contexts)
    if not found:
        raise RuntimeError(f"torch.nn.LSTM trains in {dtype} in none of its settings: {refused}")
    if max(found.values()) < 5 * min(found.values()):
        T, found = net.T, seconds(net.T, found)
    taken = min(found, key=lambda name: found[name])
    return {"taken": taken, "T": T, "ms": {name: 1e3 * s for name, s in found.items()}, "refused": refused}


def _agreement(losses: list[float], expected: list[float], dtype: str) -> dict[str, Any]:
    """How far two loss curves are apart, each point a mean over TAIL steps."""
    n = min(len(losses), len(expected))
    width = min(TAIL, n)
    ours, torchs = (np.convolve(curve[:n], np.ones(width) / width, "valid") for curve in (losses, expected))
    difference = float(np.max(np.abs(ours - torchs) / torchs))
    return {
        "ok": difference <= AGREE[dtype],  # false for NaN
        "largest_difference": difference,
        "allowed": AGREE[dtype],
        "steps": n,
        "first_loss": losses[0],
        "last_losses": {"ours": float(ours[-1]), "torch float32": float(torchs[-1])},
    }


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
