"""How fast the char-LM writes: the library's own loop around its model, torch.nn.LSTM and NumPy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import bench_train, results
from benchmarks.contenders import ON
from fusedlstm import reference
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.sample import ids_after
from fusedlstm.timing import Context, Runner, interleave, summary

Model = Callable[[Tensor, State | None], tuple[Tensor, State]]
CHECKED = 50  # characters of greedy text
# A text may part from the reference's where its two best logits are closer than this share of their range:
# such a tie is rounding's to break. A GPU's TF32 rounds to 11 bits.
TIE = {"cpu": 1e-4, "cuda": 1e-2}
TEMPERATURE = 0.8


@dataclass(frozen=True)
class Net:
    """What writes: hidden units, layers, characters, streams side by side."""

    H: int
    L: int
    V: int
    B: int

    @property
    def name(self) -> str:
        return f"{self.L}x{self.H}, {self.B} stream" + ("s" if self.B > 1 else "")


NETS = [Net(H, L, 65, B) for L, H in ((2, 512), (2, 128), (3, 512)) for B in (1, 64)]


class NumPyLM:
    """A CharLM's forward in NumPy, float64; it keeps how far apart the two best logits were."""

    def __init__(self, model: CharLM) -> None:
        self.L = model.lstm.num_layers
        self.weights = [w.detach().cpu().double().numpy() for w in model.lstm.parameters()]
        self.decoder, self.bias = (p.detach().cpu().double().numpy() for p in model.decoder.parameters())
        self.margins: list[Tensor] = []  # for each character [B], as shares of the range

    def __call__(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        h0, c0 = (None, None) if state is None else (t.numpy() for t in state)
        y, h, c, *_ = reference.forward(ids.numpy(), self.weights, h0, c0, num_layers=self.L)
        logits = torch.from_numpy(y @ self.decoder.T + self.bias)
        best = logits[-1].topk(2).values
        self.margins.append((best[:, 0] - best[:, 1]) / (logits[-1].amax(1) - logits[-1].amin(1)))
        return logits, (torch.from_numpy(h), torch.from_numpy(c))


class Writing:
    """A text in the making; each call adds some characters to every stream.

    Args:
        model: what predicts them.
        start: first characters [1, B], on the model's device.
        characters: that one call adds.
    """

    def __init__(self, model: Model, start: Tensor, characters: int) -> None:
        self.text = ids_after(model, start, TEMPERATURE, seed=1)
        self.characters = characters

    def __call__(self) -> None:
        for ids in islice(self.text, self.characters):
            ids.cpu()  # a reader waits for every character


def contenders(net: Net, device: str) -> dict[str, tuple[Model, Context]]:
    """Models of the same weights, and the setting in which each runs."""
    torch.manual_seed(1)
    ours = bench_train.Net(net.H, net.L, net.B, 1, net.V).ours(device).eval()
    with torch.no_grad():
        ours.decoder.weight.normal_()  # wide logits: few ties, and a text that does not stand still
    torchs = bench_train.OneHotLM(net.V, net.H, net.L).eval()
    torchs.load_state_dict(ours.state_dict())
    return {
        "ours": (ours.to(device), nullcontext),
        **{name: (torchs.to(device), ON[device][name].context) for name in ("torch", "torch_plain")},
        "numpy": (NumPyLM(ours), nullcontext),
    }


def parity(net: Net, models: dict[str, tuple[Model, Context]], device: str) -> dict[str, Any]:
    """Compares the greedy text of ours with NumPy's, stream by stream, up to the first tie.

    Returns:
        "ok", and how many characters of all streams were "compared".
    """
    start = first(net)
    wrong = compared = 0
    texts = {}
    for name, where in (("ours", device), ("numpy", "cpu")):
        model, context = models[name]
        with context():
            text = islice(ids_after(model, start.to(where), temperature=0), CHECKED)
            texts[name] = torch.cat([ids.cpu() for ids in text])
    numpy = models["numpy"][0]
    assert isinstance(numpy, NumPyLM)
    clear = torch.stack(numpy.margins) >= TIE[device]
    for b in range(net.B):
        tie = next(iter((~clear[:, b]).nonzero().flatten().tolist()), CHECKED)
        compared += tie
        wrong += int((texts["ours"][:tie, b] != texts["numpy"][:tie, b]).sum())
    return {"ok": not wrong and compared >= CHECKED, "wrong": wrong, "compared": compared}


def measure(net: Net, device: str = "cpu", seconds: float = 1.0, characters: int = 50) -> dict[str, Any]:
    """Measures one net; without parity it has no times.

    Args:
        net: what writes.
        device: "cpu" or "cuda".
        seconds: for each contender, at least.
        characters: of each stream that one timed run writes.
    """
    models = contenders(net, device)
    found = asdict(net) | {"characters": characters, "parity": parity(net, models, device)}
    if not found["parity"]["ok"]:
        return found
    runners = {
        name: Runner(Writing(model, first(net).to("cpu" if name == "numpy" else device), characters), context)
        for name, (model, context) in models.items()
    }
    taken = interleave(runners, seconds)  # by the clock, on a GPU too: the loop itself is part of it
    ms = {name: summary(values) for name, values in taken.items()}
    faster = min(ms[name]["p50"] for name in ("torch", "torch_plain"))
    return found | {
        "ms": ms,
        "chars_per_s": {name: 1e3 * net.B * characters / times["p50"] for name, times in ms.items()},
        "ratio": faster / ms["ours"]["p50"],
    }


def first(net: Net) -> Tensor:
    """Another character for each stream to start from [1, B]."""
    return torch.arange(net.B)[None] % net.V


def main(device: str = "cpu", seconds: float = 1.0, out: Path | None = None) -> None:
    """Measures the sampler and adds it to this machine's record.

    Args:
        device: cpu or cuda.
        seconds: for each net and contender, at least.
        out: the record; by default benchmarks/results/DEVICE/COMMIT.json.
    """
    machine = results.machine(device)
    out = out or results.path_for(machine)
    results.check(out, machine)
    for net in NETS:
        found = measure(net, device, seconds)
        results.add(out, machine, "sample", net.name, found)
        print(f"{net.name:20} {line(found)}", flush=True)
    print(f"written to {out}")


def line(found: dict[str, Any]) -> str:
    """A net's speeds in words."""
    if "ms" not in found:
        return f"WRONG TEXT, no time: {found['parity']}"
    speeds = ", ".join(f"{name} {value:,.0f}" for name, value in found["chars_per_s"].items())
    return f"chars/s: {speeds}; {found['ratio']:.2f} times the faster torch"


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
