"""How fast the char-LM writes: its generator and its loop, the loop around torch.nn.LSTM, and NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import bench_train, results
from benchmarks.contenders import ON
from fusedlstm import reference
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.sample import ids_after
from fusedlstm.generate import Generator
from fusedlstm.timing import Context, Runner, interleave, summary

Model = Callable[[Tensor, State | None], tuple[Tensor, State]]
# From first characters [1, B], a temperature and a number n: pieces [n, B] or [1, B] without end.
Text = Callable[[Tensor, float, int], Iterator[Tensor]]
CHECKED = 50  # characters of greedy text
CHECKED_STREAMS = 8  # at least: one alone may come to a tie at once
# A text may part from the reference's where its two best logits are closer than this share of their range:
# such a tie is rounding's to break. A GPU's TF32 rounds to 11 bits, int8's states to 15.
TIE = {"cpu": 1e-4, "cuda": 1e-2, "int8": 1e-3}
TEMPERATURE = 0.8
PRECISIONS = ("float32", "bfloat16", "int8")
GENERATED = {"cpu": PRECISIONS, "cuda": ("float32", "bfloat16")}
FASTEST_OF = ("torch", "torch_plain")


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


@dataclass(frozen=True)
class Contender:
    """A way to write a text, and the setting in which it runs.

    Args:
        text: begins one.
        context: the setting.
        device: where the first characters must be.
        checked: as what its greedy text is checked: a precision of NumPyLM, or nothing.
    """

    text: Text
    context: Context = nullcontext
    device: str = "cpu"
    checked: str = ""


class NumPyLM:
    """A CharLM's forward in NumPy, float64; it keeps how far apart the two best logits were.

    Args:
        model: whose weights.
        precision: what its matrices are rounded to, but for the first layer's inputs.
    """

    def __init__(self, model: CharLM, precision: str = "float32") -> None:
        self.L = model.lstm.num_layers
        (w_ih, *first), *others = model.lstm.all_weights
        layers = [first, *others]
        self.weights = [
            doubles(w_ih),
            *(rounded(w, precision) if w.dim() == 2 else doubles(w) for layer in layers for w in layer),
        ]
        self.decoder, self.bias = rounded(model.decoder.weight, precision), doubles(model.decoder.bias)
        self.margins: list[Tensor] = []  # for each character [B], as shares of the range

    def __call__(self, ids: Tensor, state: State | None) -> tuple[Tensor, State]:
        h0, c0 = (None, None) if state is None else (t.numpy() for t in state)
        y, h, c, *_ = reference.forward(ids.numpy(), self.weights, h0, c0, num_layers=self.L)
        logits = torch.from_numpy(y @ self.decoder.T + self.bias)
        best = logits[-1].topk(2).values
        self.margins.append((best[:, 0] - best[:, 1]) / (logits[-1].amax(1) - logits[-1].amin(1)))
        return logits, (torch.from_numpy(h), torch.from_numpy(c))


def doubles(weight: Tensor) -> np.ndarray:
    return weight.detach().cpu().double().numpy()


def rounded(weight: Tensor, precision: str) -> np.ndarray:
    """A matrix as the generator keeps it in a precision."""
    if precision == "int8":
        values = weight.detach().cpu().numpy()
        scales = np.abs(values).max(1, keepdims=True) / np.float32(127)
        return np.rint(values / scales).astype(np.float64) * scales
    return doubles(weight.to(getattr(torch, precision)))


class Writing:
    """A text in the making; each call adds some characters to every stream.

    Args:
        text: what makes it.
        start: first characters [1, B], on the model's device.
        characters: that one call adds.
    """

    def __init__(self, text: Text, start: Tensor, characters: int) -> None:
        self.pieces = text(start, TEMPERATURE, characters)
        self.characters = characters

    def __call__(self) -> None:
        taken(self.pieces, self.characters)


def taken(pieces: Iterator[Tensor], count: int) -> Tensor:
    """The next characters of a text [count, B]; a reader waits for every piece of it."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        found.append(next(pieces).cpu())
    return torch.cat(found)


def stepping(model: Model) -> Text:
    """The library's own loop around a model."""
    return lambda start, temperature, n: ids_after(model, start, temperature, seed=1)


def generating(model: CharLM, precision: str) -> Text:
    """The library's generator with a model's weights."""

    def text(start: Tensor, temperature: float, n: int) -> Iterator[Tensor]:
        generator = generator_of(model, start.shape[1], precision)
        generator.read(start)
        while True:
            yield generator.generate(n, temperature)

    return text


def generator_of(model: CharLM, B: int, precision: str) -> Generator:
    layers, decoder = model.lstm.all_weights, model.decoder
    return Generator(layers, decoder.weight, decoder.bias, B, precision, seed=1)


def models(net: Net, device: str) -> tuple[CharLM, bench_train.OneHotLM]:
    """Ours and torch's, of the same weights."""
    torch.manual_seed(1)
    ours = bench_train.Net(net.H, net.L, net.B, 1, net.V).ours(device).eval()
    with torch.no_grad():
        ours.decoder.weight.normal_()  # wide logits: few ties, and a text that does not stand still
    torchs = bench_train.OneHotLM(net.V, net.H, net.L).eval()
    torchs.load_state_dict(ours.state_dict())
    return ours.to(device), torchs.to(device)


def refusal(ours: CharLM, B: int, precision: str) -> str:
    """Why the generator does not write so many streams here; nothing when it does."""
    try:
        generator_of(ours, B, precision)
    except (ValueError, ImportError) as why:
        return str(why)
    return ""


def contenders(net: Net, ours: CharLM, torchs: CharLM, device: str) -> dict[str, Contender]:
    """Whoever writes on a device, by name."""
    refused = {p: refusal(ours, net.B, p) for p in GENERATED[device]}
    for precision, why in refused.items():
        if why:
            print(f"{net.name}: generate {precision} skipped: {why}", flush=True)
    generated = [p for p, why in refused.items() if not why]
    return {
        "ours": Contender(stepping(ours), device=device, checked="float32"),
        **{f"generate {p}": Contender(generating(ours, p), device=device, checked=p) for p in generated},
        **{name: Contender(stepping(torchs), ON[device][name].context, device) for name in FASTEST_OF},
        "numpy": Contender(stepping(NumPyLM(ours))),
    }


def parity(net: Net, ours: CharLM, found: dict[str, Contender], device: str) -> dict[str, Any]:
    """Compares greedy texts with those of NumPy, stream by stream, up to the first tie.

    Returns:
        "ok", how many characters of all texts were "wrong", and how many were "compared" at the least in one.
    """
    wrong, compared = 0, []
    for precision in PRECISIONS:
        checked = [one for one in found.values() if one.checked == precision]
        if not checked:
            continue
        numpy = NumPyLM(ours, precision)
        expected = taken(stepping(numpy)(first(net), 0.0, 1), CHECKED)
        unclear = torch.stack(numpy.margins[:CHECKED]) < TIE.get(precision, TIE[device])
        ties = [next(iter(unclear[:, b].nonzero().flatten().tolist()), CHECKED) for b in range(net.B)]
        compared.append(sum(ties))
        for one in checked:
            with one.context():
                text = taken(one.text(first(net).to(one.device), 0.0, CHECKED), CHECKED)
            wrong += sum(int((text[:tie, b] != expected[:tie, b]).sum()) for b, tie in enumerate(ties))
    return {"ok": not wrong and min(compared) >= CHECKED, "wrong": wrong, "compared": min(compared)}


def measure(net: Net, device: str = "cpu", seconds: float = 1.0, characters: int = 50) -> dict[str, Any]:
    """Measures one net; without parity it has no times.

    Args:
        net: what writes.
        device: "cpu" or "cuda".
        seconds: for each contender, at least.
        characters: of each stream that one timed run writes; a generator writes them in one piece.
    """
    ours, torchs = models(net, device)
    writers = contenders(net, ours, torchs, device)
    checked = replace(net, B=max(net.B, CHECKED_STREAMS))
    found = asdict(net) | {"characters": characters, "parity": parity(checked, ours, writers, device)}
    if not found["parity"]["ok"]:
        return found
    runners = {
        name: Runner(Writing(one.text, first(net).to(one.device), characters), one.context)
        for name, one in writers.items()
    }
    times = interleave(runners, seconds)  # by the clock, on a GPU too: the loop itself is part of it
    ms = {name: summary(values) for name, values in times.items()}
    faster = min(ms[name]["p50"] for name in FASTEST_OF)
    ratios = {name: faster / times["p50"] for name, times in ms.items() if name not in FASTEST_OF}
    return found | {
        "ms": ms,
        "chars_per_s": {name: 1e3 * net.B * characters / times["p50"] for name, times in ms.items()},
        "ratio": ratios["ours"],
        "ratios": ratios,  # the faster torch's time over each
    }


def first(net: Net) -> Tensor:
    """Another character for each stream to start from [1, B]."""
    return torch.arange(net.B)[None] % net.V


def losses(steps: int = 400, H: int = 128, held_out: int = 1000) -> dict[str, float]:
    """What the precisions cost: the loss of a trained model on what follows the text that it has read.

    Args:
        steps: of training.
        H: hidden units of its two layers.
        held_out: characters of each stream that the loss is the mean of.

    Returns:
        Nats a character by precision, and "module": as the model itself has it.
    """
    net = bench_train.Net(H, L=2, B=32, T=50, V=65)
    training = bench_train.Training(net, net.ours, "float32", "cpu", net.streams("cpu"))
    for _ in range(steps):
        training()
    x, y = training.streams.chunk(steps * net.T, held_out)
    model = training.model.eval()
    with torch.no_grad():
        logits, _ = model(x)
        found = {"module": float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()))}
    for precision in PRECISIONS:
        generator = generator_of(model, net.B, precision)
        generator.read(x[:1])
        found[precision] = float(generator.score(y).double().mean())
    return found


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
    if device == "cpu":
        nats = losses()
        results.add(out, machine, "precision", "2x128", {"nats": nats})
        print("loss in nats: " + ", ".join(f"{name} {value:.4f}" for name, value in nats.items()))
    print(f"written to {out}")


def line(found: dict[str, Any]) -> str:
    """A net's speeds in words."""
    if "ms" not in found:
        return f"WRONG TEXT, no time: {found['parity']}"
    speeds = ", ".join(f"{name} {value:,.0f}" for name, value in found["chars_per_s"].items())
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in found["ratios"].items() if name != "numpy")
    return f"chars/s: {speeds}; times the faster torch: {ratios}"


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
