"""Whole steps of the char-LM as `fusedlstm train` makes them, against the same steps on torch.nn.LSTM."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import tyro
from torch import Tensor

from benchmarks import results
from benchmarks.contenders import Context, without_onednn
from benchmarks.timing import Runner, interleave, once, summary
from fusedlstm.charlm import corpus
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.settings import Settings
from fusedlstm.charlm.train import OPTIMIZERS, train_step

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SETTINGS: dict[str, Context] = {"as it comes": nullcontext, "oneDNN off": without_onednn}
PROBE_T = 4  # steps in time: bfloat16 with oneDNN off takes a minute at 100
# Largest relative difference of the loss from torch's in float32, smoothed over TAIL steps.
AGREE = {"float32": 0.01, "bfloat16": 0.02}
TAIL = 10


class OneHotLM(CharLM):
    """The same network with torch.nn.LSTM, which reads one-hot rows."""

    def __init__(self, vocab_size: int, rnn_size: int, num_layers: int) -> None:
        super().__init__(vocab_size, rnn_size, num_layers)
        lstm = torch.nn.LSTM(vocab_size, rnn_size, num_layers)
        lstm.load_state_dict(self.lstm.state_dict())
        self.lstm = cast(Any, lstm)

    def forward(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        one_hot = torch.nn.functional.one_hot(ids, self.lstm.input_size).float()
        y, state = cast(Any, self.lstm)(one_hot, state)
        return self.decoder(self.dropout(y)), state


@dataclass(frozen=True)
class Net:
    """What is trained: sizes, and the text as it falls into chunks of inputs and targets [T, B]."""

    H: int
    L: int
    B: int
    T: int
    V: int

    def streams(self) -> corpus.Streams:
        """The standard library's source, of which only the V commonest bytes are kept."""
        text = corpus.TEXTS["stdlib"]()
        rare = np.argsort(-np.bincount(np.frombuffer(text, np.uint8), minlength=256))[self.V :]
        return corpus.Streams(
            corpus.Corpus.from_bytes("stdlib", text.translate(None, bytes(rare.tolist()))).ids, self.B
        )


class Training:
    """A model in training; each call is one step."""

    def __init__(self, net: Net, model: type[CharLM], dtype: str, streams: corpus.Streams) -> None:
        torch.manual_seed(1)
        self.T, self.dtype, self.streams = net.T, DTYPES[dtype], streams
        self.settings = Settings(rnn_size=net.H, num_layers=net.L, batch_size=net.B, seq_length=net.T)
        self.model = model(net.V, net.H, net.L)
        optimizer = OPTIMIZERS[self.settings.optimizer]
        self.optimizer = optimizer(self.model.parameters(), lr=self.settings.learning_rate)
        self.state: State | None = None
        self.losses: list[float] = []

    def __call__(self) -> None:
        x, y = self.streams.chunk(len(self.losses) * self.T, self.T)
        loss, self.state = train_step(
            self.model, self.optimizer, x, y, self.state, self.settings.grad_clip, self.dtype
        )
        self.losses.append(loss)


def measure(net: Net, steps: int) -> dict[str, Any]:
    """Trains ours and torch's in both dtypes, step by step in turn; if losses differ there are no times."""
    streams = net.streams()
    found: dict[str, Any] = {"H": net.H, "L": net.L, "B": net.B, "T": net.T, "V": net.V, "steps": steps}
    found["torch_setting"] = {dtype: _faster_setting(net, dtype, streams) for dtype in DTYPES}
    trainings: dict[str, Training] = {}
    runners: dict[str, Runner] = {}
    for dtype in DTYPES:
        faster = SETTINGS[found["torch_setting"][dtype]["taken"]]
        for name, model, context in (("ours", CharLM, nullcontext), ("torch", OneHotLM, faster)):
            trainings[f"{name} {dtype}"] = training = Training(net, model, dtype, streams)
            runners[f"{name} {dtype}"] = Runner(training, cast(Context, context))
    seconds = interleave(runners, 0.0, steps)
    found["losses"] = {name: training.losses for name, training in trainings.items()}
    found["agreement"] = {
        dtype: _agreement(trainings[f"ours {dtype}"].losses, trainings["torch float32"].losses, dtype)
        for dtype in DTYPES
    }
    if all(agreement["ok"] for agreement in found["agreement"].values()):
        ms = {name: summary(values) for name, values in seconds.items()}
        found["ms"] = ms
        found["chars_per_s"] = {name: 1e3 * net.B * net.T / times["p50"] for name, times in ms.items()}
        found["ratio"] = {
            f"{ours} to {torchs}": ms[torchs]["p50"] / ms[ours]["p50"]
            for ours, torchs in (
                ("ours float32", "torch float32"),
                ("ours bfloat16", "torch bfloat16"),
                ("ours bfloat16", "torch float32"),
            )
        }
    return found


def main(
    rnn_size: int = 512,
    num_layers: int = 2,
    batch_size: int = 100,
    seq_length: int = 100,
    vocab_size: int = 65,
    steps: int = 40,
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
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
    """
    net = Net(rnn_size, num_layers, batch_size, seq_length, vocab_size)
    machine = results.machine()
    out = out or results.path_for(machine)
    results.check(out, machine)
    found = measure(net, steps)
    results.add(out, machine, "train", f"{net.L}x{net.H}", found)
    for dtype, agreement in found["agreement"].items():
        print(f"{dtype}: {agreement}; torch {found['torch_setting'][dtype]}")
    for name, ms in found.get("ms", {}).items():
        print(f"{name}: {ms['p50']:.1f} ms a step, {found['chars_per_s'][name]:,.0f} chars/s")
    for pair, ratio in found.get("ratio", {}).items():
        print(f"{pair}: {ratio:.2f}")
    print(f"written to {out}")


def _faster_setting(net: Net, dtype: str, streams: corpus.Streams) -> dict[str, Any]:
    """torch's faster setting, by a few time steps; then by whole training steps, unless one is far behind."""

    def seconds(T: int) -> dict[str, float]:
        shorter = Net(net.H, net.L, net.B, T, net.V)
        new: Callable[[], Training] = partial(Training, shorter, OneHotLM, dtype, streams)
        return {name: once(Runner(new(), context)) for name, context in SETTINGS.items()}

    T = min(net.T, PROBE_T)
    found = seconds(T)
    if max(found.values()) < 5 * min(found.values()):
        T, found = net.T, seconds(net.T)
    taken = min(found, key=lambda name: found[name])
    return {"taken": taken, "T": T, "ms": {name: 1e3 * s for name, s in found.items()}}


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
    tyro.cli(main)
