"""Those who follow a run: its metrics, samples and loss curve as files, TensorBoard, Weights & Biases."""

import html
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any

from fusedlstm.charlm.checkpoint import write_whole
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.settings import CharLMError, Settings

METRICS, SAMPLES, EVENTS = "metrics.jsonl", "samples", "tensorboard"
SECONDS_BETWEEN_CURVES = 60.0
LOSSES = ("train", "val")  # among the metrics, in nats; the services show them in bits
Metrics = Mapping[str, float]


class Watcher:
    """Hears of a run; a kind of it leaves out what it has no use for."""

    def metrics(self, step: int, values: Metrics) -> None:
        """Losses in nats (train, val) and other figures, after a step."""

    def sample(self, step: int, text: str) -> None:
        """What the model wrote after a step."""

    def close(self) -> None:
        """The run has ended."""


class Watchers(Watcher):
    """All that follow one run: its files, and the services that its settings name.

    Args:
        settings: of the run.
        run: its folder.
        step: where it goes on; what was told of later steps no longer holds, and is cut away.
        say: tells the user a line.

    Raises:
        CharLMError: here and in all methods, when a package is missing, or the disk refuses.
    """

    def __init__(
        self, settings: Settings, run: Path, step: int = 0, say: Callable[[str], None] = print
    ) -> None:
        self.run = run
        self.all: list[Watcher] = []
        with self._writing():
            # First what may be missing: then the files are as they were.
            if settings.tensorboard:
                self.all.append(TensorBoard(run, step))
            if settings.wandb:
                self.all.append(WeightsAndBiases(settings, run))
            self.all += [MetricsFile(run, step), SampleFiles(run)]
        if find_spec("matplotlib"):
            self.all.append(Curve(run))  # after the file, from which it is drawn
        else:
            say("no picture of the losses, which needs matplotlib: pip install fusedlstm[plot]")

    def metrics(self, step: int, values: Metrics) -> None:
        with self._writing():
            for watcher in self.all:
                watcher.metrics(step, values)

    def sample(self, step: int, text: str) -> None:
        with self._writing():
            for watcher in self.all:
                watcher.sample(step, text)

    def close(self) -> None:
        with self._writing(), ExitStack() as each:  # also when another of them fails
            for watcher in self.all:
                each.callback(watcher.close)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CharLMError(f"cannot write to {self.run}: {error.strerror or error}") from error


class MetricsFile(Watcher):
    """RUN/metrics.jsonl: one JSON object a line, added as it is told; without what later steps left there."""

    def __init__(self, run: Path, step: int = 0) -> None:
        self.run = run
        run.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(run) if line["step"] <= step]
        write_whole(run / METRICS, "".join(map(_line, kept)).encode())

    def metrics(self, step: int, values: Metrics) -> None:
        with open(self.run / METRICS, "a", encoding="utf-8") as file:
            file.write(_line({"step": step} | dict(values)))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, but for a last one that a dying process did not finish.

    Raises:
        CharLMError: when another line is damaged.
    """
    file = run / METRICS
    text = file.read_bytes() if file.exists() else b""
    lines = []
    for number, line in enumerate(text.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
            lines.append(values | {"step": int(values["step"])})
        except (ValueError, KeyError, TypeError):
            raise CharLMError(f"line {number} of {file} is damaged: take it out") from None
    return lines


def _line(values: Mapping[str, Any]) -> str:
    """One line of JSON, which has no word for a figure that is not finite."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
    return json.dumps(finite) + "\n"


class SampleFiles(Watcher):
    """RUN/samples/step-00000100.txt: what the model wrote."""

    def __init__(self, run: Path) -> None:
        self.folder = run / SAMPLES

    def sample(self, step: int, text: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"step-{step:08}.txt", text.encode())


class Curve(Watcher):
    """RUN/loss.png and loss.svg, drawn anew every minute at most, and at the end."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.due = time.monotonic() + SECONDS_BETWEEN_CURVES

    def metrics(self, step: int, values: Metrics) -> None:
        if time.monotonic() >= self.due:
            self.close()
            self.due = time.monotonic() + SECONDS_BETWEEN_CURVES

    def close(self) -> None:
        from fusedlstm.charlm.curve import draw  # here: matplotlib is slow to import, and may be missing

        draw(self.run, read_metrics(self.run))


class TensorBoard(Watcher):
    """Events for TensorBoard, in RUN/tensorboard."""

    def __init__(self, run: Path, step: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self.writer = SummaryWriter(str(run / EVENTS), purge_step=step + 1)

    def metrics(self, step: int, values: Metrics) -> None:
        for name, value in _figures(values).items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def sample(self, step: int, text: str) -> None:
        self.writer.add_text("sample", indent(text, "    ", lambda line: True), step)  # Markdown for code
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases(Watcher):
    """A run of Weights & Biases for each start of the training, those of one folder in one group."""

    def __init__(self, settings: Settings, run: Path) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise _missing("wandb") from None
        self.html = lambda text: wandb.Html(f"<pre>{html.escape(text)}</pre>")
        run.mkdir(parents=True, exist_ok=True)
        name, mode = run.resolve().name, os.environ.get("WANDB_MODE")
        try:
            self.to = wandb.init(
                project="fusedlstm", name=name, group=name, dir=str(run), mode=mode, config=asdict(settings)
            )
        except wandb.Error as error:
            offline = "without a network or an account set WANDB_MODE=offline"
            raise CharLMError(f"--wandb does not start: {' '.join(str(error).split())}; {offline}") from None

    def metrics(self, step: int, values: Metrics) -> None:
        self.to.log(_figures(values), step=step)

    def sample(self, step: int, text: str) -> None:
        self.to.log({"sample": self.html(text)}, step=step)

    def close(self) -> None:
        self.to.finish()


def _missing(package: str) -> CharLMError:
    return CharLMError(f"--{package} needs the package {package}: pip install fusedlstm[watch]")


def _figures(values: Metrics) -> dict[str, float]:
    """The metrics as the services show them: losses in bits per character, side by side."""
    losses = {f"bits_per_char/{name}": bits(values[name]) for name in LOSSES if name in values}
    return losses | {name: value for name, value in values.items() if name not in (*LOSSES, "step")}
