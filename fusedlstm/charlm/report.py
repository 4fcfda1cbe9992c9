"""What the terminal shows of a training run: a bar where there is a terminal, plain lines elsewhere."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

SECONDS_BETWEEN_LINES = 10.0
SMOOTHING = 0.02  # weight of the newest step in the figures shown


def bits(nats: float) -> float:
    """Bits per character of a loss in nats."""
    return nats / math.log(2)


class Report:
    """Context in which a run tells how it is doing."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("train", total=1.0, step=0, figures="")
        self.next_line = 0.0
        self.steps, self.loss, self.seconds_per_char = 0, 0.0, 0.0

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, progress: float, loss: float, chars: int, seconds: float) -> None:
        """After each step: the progress of the run, 0 to 1, and the step's loss in nats, characters, time."""
        self.steps += 1
        weight = max(SMOOTHING, 1 / self.steps)
        self.loss += weight * (loss - self.loss)
        self.seconds_per_char += weight * (seconds / chars - self.seconds_per_char)
        figures = (
            f"loss {self.loss:.3f}  {bits(self.loss):.3f} bits/char  {1 / self.seconds_per_char:,.0f} chars/s"
        )
        self.bar.update(self.task, completed=progress, step=step, figures=figures)
        if not self.console.is_terminal and time.perf_counter() >= self.next_line:
            self.next_line = time.perf_counter() + SECONDS_BETWEEN_LINES
            left = self.bar.tasks[0].time_remaining
            self.say(f"step {step}  {progress:.0%}  {figures}" + (f"  {left:.0f} s left" if left else ""))

    def say(self, text: str) -> None:
        """One line, above the bar."""
        self.console.print(Text(text))

    def pause(self, metrics: dict[str, float], sample: str) -> None:
        """Losses in nats and a piece of the model's writing."""
        losses = (f"{part} {bits(metrics[part]):.3f}" for part in ("train", "val") if part in metrics)
        title = f"step {metrics['step']}, bits/char: {', '.join(losses)}"
        self.console.print(Rule(Text(title)), Text(sample), Rule())
