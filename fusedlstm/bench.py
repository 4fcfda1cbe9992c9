"""`fusedlstm bench`: a user's shape on the user's machine, fusedlstm against torch.nn.LSTM."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fusedlstm.backends import check_name, kernel, resolve
from fusedlstm.charlm.settings import COUNT, POSITIVE, CharLMError, Rule, check
from fusedlstm.convert import explain
from fusedlstm.functional import spec
from fusedlstm.nn import LSTM
from fusedlstm.timing import Runner, interleave, summary

Mode = Literal["infer", "forward", "forward+backward"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]
REFERENCE_ROUNDING = 1e-13  # float64 is not exact either
PLOTS = (".png", ".svg", ".pdf")
RUNS_OF_LENGTHS = 6  # at the full length, what the fewest runs at half, a quarter and an eighth of it take
OURS, TORCH = "fusedlstm", "torch.nn.LSTM"
Seconds = dict[str, list[float]]  # of every run, by who ran


def _among(values: tuple[str, ...]) -> Rule:
    return lambda v: v in values, f"one of {', '.join(values)}"


RULES: dict[str, Rule] = {
    "hidden_size": COUNT,
    "num_layers": COUNT,
    "batch_size": COUNT,
    "seq_length": COUNT,
    "input_size": (lambda v: v is None or COUNT[0](v), COUNT[1]),
    "dtype": _among(get_args(Dtype)),
    "mode": _among(get_args(Mode)),
    "seconds": POSITIVE,
    "plot": (lambda v: not v or Path(v).suffix in PLOTS, f"a file that ends in {', '.join(PLOTS)}"),
}


@dataclass(frozen=True)
class Bench:
    """Time an LSTM of your shape on this machine, fusedlstm against torch.nn.LSTM.

    Raises:
        CharLMError: when a value is out of range; the message names it.
    """

    hidden_size: int = 256
    """Hidden units H."""
    num_layers: int = 1
    """Layers L."""
    batch_size: int = 32
    """Sequences B."""
    seq_length: int = 100
    """Steps T."""
    input_size: int | None = None
    """Width I of the input, which needs no gradient; by default that of the hidden units."""
    bidirectional: bool = False
    """A second direction reads the sequences from their end."""
    dtype: Dtype = "float32"
    """Of input and weights."""
    mode: Mode = "forward+backward"
    """infer keeps nothing for a backward, forward does."""
    device: str = ""
    """Such as cpu or cuda; by default the GPU where torch has one."""
    backend: str = "auto"
    """What must compute ours; auto chooses as `import fusedlstm` does."""
    seconds: float = 25.0
    """About how long to measure; each is run at least five times."""
    plot: str = ""
    """File for a picture of the times, and of how they grow with T (.png, .svg or .pdf)."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)
        try:
            check_name(self.backend)
        except ValueError as error:
            raise CharLMError(f"--{error}") from None
        try:
            torch.empty(0, device=self.where)
            usable = torch.device(self.where).type in ("cpu", "cuda")
        except (RuntimeError, AssertionError):  # the latter where torch was built without CUDA
            usable = False
        if not usable:
            raise CharLMError(f"--device must be cpu, or cuda where torch has a GPU, got {self.device!r}")
        if self.plot:
            if find_spec("matplotlib") is None:
                raise CharLMError("--plot needs matplotlib: pip install 'fusedlstm[plot]'")
            if not Path(self.plot).absolute().parent.is_dir():
                raise CharLMError(f"--plot must be in a folder that exists, got {self.plot!r}")

    def ours(self) -> LSTM:
        """fusedlstm's module of this shape."""
        return LSTM(*self._sizes, **self._options, backend=self.backend)

    def torchs(self, dtype: str = "") -> torch.nn.LSTM:
        """torch's, in another dtype where one is given."""
        options = self._options | ({"dtype": getattr(torch, dtype)} if dtype else {})
        return torch.nn.LSTM(*self._sizes, **options)

    @property
    def _sizes(self) -> tuple[int, int, int]:
        return self.width, self.hidden_size, self.num_layers

    @property
    def _options(self) -> dict[str, Any]:
        dtype = getattr(torch, self.dtype)
        return {"bidirectional": self.bidirectional, "device": self.where, "dtype": dtype}

    @property
    def where(self) -> str:
        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def width(self) -> int:
        return self.input_size or self.hidden_size

    @property
    def shape(self) -> str:
        sizes = f"H={self.hidden_size} L={self.num_layers} B={self.batch_size} T={self.seq_length}"
        return f"{sizes} I={self.width}" + (" bidirectional" if self.bidirectional else "")

    def __call__(self) -> None:
        with _memory_errors_in_words(self.shape):
            run(self, Console(highlight=False, soft_wrap=True))


class Pass:
    """One pass of a module of this shape, over the same data and weights for every module and dtype."""

    def __init__(self, bench: Bench, module: torch.nn.LSTM) -> None:
        random = torch.Generator().manual_seed(1)
        like, rounded = next(module.parameters()), getattr(torch, bench.dtype)

        def data(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(shape, generator=random) * scale
            return values.to(rounded).to(like)

        self.mode = bench.mode
        self.module = module.train(bench.mode != "infer")
        scale = 0.6 * bench.hidden_size**-0.5  # about torch's own start
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(data(*weight.shape, scale=scale))
        self.x = data(bench.seq_length, bench.batch_size, bench.width)
        self.dy = data(bench.seq_length, bench.batch_size, bench.hidden_size * (1 + bench.bidirectional))

    def __call__(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs it; gradients are then in the module's parameters."""
        self.module.zero_grad()
        with torch.set_grad_enabled(self.mode != "infer"):
            y, states = self.module(self.x)
        if self.mode == "forward+backward":
            y.backward(self.dy)
        return y, states

    def results(self) -> dict[str, dict[str, Tensor]]:
        """Runs it once: outputs and gradients by name, in float64."""
        y, (h_n, c_n) = self()
        gradients = {name: w.grad for name, w in self.module.named_parameters() if w.grad is not None}
        groups = {"outputs": {"y": y, "h_n": h_n, "c_n": c_n}, "gradients": gradients}
        return {g: {n: t.detach().double() for n, t in group.items()} for g, group in groups.items() if group}


@dataclass(frozen=True)
class Parity:
    """Largest errors against torch in float64, relative to the largest value of each tensor."""

    ours: float
    torchs: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.ours <= self.allowed  # false for NaN


def parity(bench: Bench, ours: Pass, torchs: Pass) -> dict[str, Parity]:
    """Compares outputs and gradients: ours may be off twice as far as torch's, plus one rounding."""
    rounding = max(torch.finfo(torchs.x.dtype).eps, REFERENCE_ROUNDING)
    truth, own, other = (p.results() for p in (Pass(bench, bench.torchs("float64")), ours, torchs))
    found = {}
    for group, values in truth.items():
        torch_error = _error(other[group], values)
        found[group] = Parity(_error(own[group], values), torch_error, 2 * torch_error + rounding)
    return found


def run(bench: Bench, console: Console) -> None:
    """Checks, times, prints, and draws where a file was given.

    Raises:
        CharLMError: the backend that was asked for cannot serve the call.
        SystemExit: the result is wrong; no time was taken.
    """
    lstm = bench.ours()
    ours, torchs = Pass(bench, lstm), Pass(bench, bench.torchs())
    with torch.set_grad_enabled(bench.mode != "infer"):
        backend, reasons = _backend(bench, lstm), explain(lstm, ours.x).splitlines()[1:]
    console.print(f"{bench.shape}, {bench.dtype}, {bench.mode}, on {hardware(bench.where)}")
    console.print(f"fusedlstm runs on {backend}; --backend {bench.backend}:", *reasons, sep="\n")
    console.print(f"torch.nn.LSTM runs on {torch_setting(bench.where)}")
    checked = parity(bench, ours, torchs)
    for group, errors in checked.items():
        console.print(
            f"largest error of the {group}, against float64: {errors.ours:.1e}, torch's {errors.torchs:.1e}, "
            f"allowed {errors.allowed:.1e}"
        )
    if not all(errors.ok for errors in checked.values()):
        raise SystemExit("fusedlstm: the result is wrong, no time was taken: please report this shape")
    console.print(f"measuring for about {bench.seconds:g} s")
    began = time.perf_counter()
    seconds = timed(bench, ours, torchs, bench.seconds / (4 if bench.plot else 1))
    console.print(table(bench, seconds))
    console.print(verdict(seconds))
    if backend == "torch":
        console.print("both rows are torch's own LSTM, which this call goes to: see --backend")
    if bench.plot:
        left = bench.seconds - (time.perf_counter() - began)
        lengths = {bench.seq_length: seconds}
        if left > RUNS_OF_LENGTHS * sum(float(np.median(seconds[name])) for name in (OURS, TORCH)):
            lengths |= timed_lengths(bench, left)
        else:
            console.print("no time was left for other lengths: see --seconds")
        draw(bench, lengths)
        console.print(f"drawn: {bench.plot}")


def timed(bench: Bench, ours: Pass, torchs: Pass, seconds: float) -> Seconds:
    """Seconds of every run, in turns; in all about as long as given."""
    runners = {OURS: Runner(ours, nullcontext), TORCH: Runner(torchs, nullcontext)}
    return interleave(runners, seconds / len(runners), device=bench.where)


def timed_lengths(bench: Bench, seconds: float) -> dict[int, Seconds]:
    """Both at shorter sequences, by T."""
    lengths = {max(bench.seq_length // part, 1) for part in (8, 4, 2)} - {bench.seq_length}
    short = [replace(bench, seq_length=T) for T in lengths]
    return {
        b.seq_length: timed(b, Pass(b, b.ours()), Pass(b, b.torchs()), seconds / len(short)) for b in short
    }


def table(bench: Bench, seconds: Seconds) -> Table:
    """Median, spread and time a step of each."""
    shown = Table("", *("runs", "p20 ms", "median ms", "p80 ms", "us a step"))
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, values in seconds.items():
        ms = summary(values)
        step_us = 1e3 * ms["p50"] / bench.seq_length
        figures = (*(f"{ms[q]:.3f}" for q in ("p20", "p50", "p80")), f"{step_us:.2f}")
        shown.add_row(name, str(ms["runs"]), *figures)
    return shown


def verdict(seconds: Seconds) -> str:
    """Who is faster, by medians, and whether the spread leaves it open."""
    ours, torchs = (summary(seconds[name]) for name in (OURS, TORCH))
    open_ = ours["p20"] <= torchs["p80"] and torchs["p20"] <= ours["p80"]
    return f"fusedlstm is {torchs['p50'] / ours['p50']:.2f} times as fast as torch.nn.LSTM here" + (
        ", but their spreads (p20 to p80) overlap: is the machine busy?" if open_ else ""
    )


def hardware(device: str) -> str:
    """What computes, by name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{device}, {count} thread{'s' if count > 1 else ''}"


def torch_setting(device: str) -> str:
    """What torch's own LSTM may use."""
    if torch.device(device).type == "cuda":
        tf32 = "with" if torch.backends.cudnn.allow_tf32 else "without"
        return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()} {tf32} TF32"
    onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return f"torch {torch.__version__}, " + ("oneDNN" if onednn else "no oneDNN")


def draw(bench: Bench, lengths: Mapping[int, Seconds]) -> None:
    """Draws every run at the full length, and medians against T where there is more than one."""
    from matplotlib.figure import Figure  # an extra, and slow to import

    colours = {OURS: "#0072b2", TORCH: "#d55e00"}
    figure = Figure(figsize=(9 if len(lengths) > 1 else 5.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 2 if len(lengths) > 1 else 1, squeeze=False)[0]
    figure.suptitle(f"{bench.shape}, {bench.dtype}, {bench.mode}\n{hardware(bench.where)}", fontsize=10)
    full = {name: 1e3 * np.array(values) for name, values in lengths[bench.seq_length].items()}
    random = np.random.default_rng(1)
    end = 1.5 * max(float(np.quantile(ms, 0.8)) for ms in full.values())
    for height, (name, ms) in zip((1, 0), full.items(), strict=True):
        strip = height + random.uniform(-0.28, 0.28, ms.size)
        axes[0].scatter(ms, strip, s=9, alpha=0.35, color=colours[name], linewidths=0)
        middle = float(np.median(ms))
        axes[0].plot([middle] * 2, [height - 0.36, height + 0.36], color=colours[name], linewidth=2.5)
        axes[0].annotate(f"{middle:.3g} ms", (middle, height + 0.38), ha="center", va="bottom", fontsize=9)
    hidden = sum(int((ms > end).sum()) for ms in full.values())
    axes[0].set(xlim=(0, end), ylim=(-0.6, 1.7), yticks=(1, 0), yticklabels=tuple(full))
    axes[0].set_xlabel("ms a pass" + (f" ({hidden} slower runs not shown)" if hidden else ""))
    axes[0].set_title("every run, and the medians", fontsize=10)
    for ax in axes[1:]:
        steps = sorted(lengths)
        for name, colour in colours.items():
            p20, p50, p80 = 1e3 * np.array([np.quantile(lengths[T][name], (0.2, 0.5, 0.8)) for T in steps]).T
            ax.fill_between(steps, p20, p80, color=colour, alpha=0.2, linewidth=0)
            ax.plot(steps, p50, "o-", color=colour, label=name, markersize=4)
        ax.set_xticks(steps)
        ax.set(xlabel="steps T", ylabel="ms a pass", xlim=(0, None), ylim=(0, None))
        ax.set_title("against the length (band: p20 to p80)", fontsize=10)
        ax.legend(frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x" if ax is axes[0] else "both", alpha=0.25)
    figure.savefig(bench.plot, dpi=160)


def _backend(bench: Bench, lstm: LSTM) -> str:
    """Whom the call goes to, with its kernel where it tells."""
    asked = spec(
        list(lstm.parameters()), bench.seq_length, bench.batch_size, True, bench.num_layers,
        bench.bidirectional, False, False, torch.is_grad_enabled(),
    )  # fmt: skip
    try:
        name = resolve(asked, bench.backend)
    except ValueError as error:
        raise CharLMError(f"--{error}") from None
    return ", ".join(filter(None, (name, kernel(asked, name))))


def _error(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    errors = [(found[n] - t).abs().max().item() / (t.abs().max().item() or 1.0) for n, t in truth.items()]
    return float(np.max(errors))  # unlike max(), keeps NaN


@contextmanager
def _memory_errors_in_words(shape: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = ("can't allocate memory", "Storage size calculation overflowed")
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(
            word in str(error) for word in words
        ):
            raise
        raise CharLMError(f"{shape} needs more memory than there is: take a smaller one") from error
