"""The command line: `fusedlstm train`, `sample` and `bench` (also `python -m fusedlstm`)."""

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Annotated

import tyro
from tyro.conf import Positional, arg, subcommand

from fusedlstm.bench import Bench
from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.sample import load_model, write
from fusedlstm.charlm.settings import RULES, CharLMError, Settings, check
from fusedlstm.charlm.train import train


@dataclass(frozen=True)
class Options(Settings):
    """The settings as flags, the text without one."""

    file: Annotated[Positional[str], arg(metavar="FILE")] = ""


@dataclass(frozen=True)
class Train:
    """Train a character model on a text, from its bytes."""

    settings: Annotated[Options, arg(name="")] = field(default_factory=Options)
    resume: str = ""
    """Folder of a run to go on with, by its own settings; only some of them may be given anew."""

    def __call__(self) -> None:
        with stop_signals() as stops:
            train(self.settings, self.resume, stop=lambda: bool(stops))


@dataclass(frozen=True)
class Sample:
    """Let a trained model write."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    length: int = 1000
    """Characters to write."""
    temperature: float = 0.8
    """Below 1 surer, above 1 wilder; 0 always takes the likeliest character."""
    prime: str = ""
    """Text to start from."""
    seed: int | None = None
    """For the same text again; by default each is another."""

    def __post_init__(self) -> None:
        check("length", self.length, RULES["sample_length"])
        check("temperature", self.temperature, RULES["temperature"])

    def __call__(self) -> None:
        model, vocab = load_model(self.run)
        prime = self.prime.encode("utf-8", "surrogateescape")
        for piece in write(model, vocab, prime, self.length, self.temperature, self.seed):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Bench, subcommand("bench")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (by default the process's) and returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 still shows the rest
    try:
        command = tyro.cli(Command, args=args, prog="fusedlstm")
        if isinstance(command, Train) and command.resume:
            saved = Train(Options(**asdict(checkpoint.load(command.resume).settings)), command.resume)
            command = tyro.cli(Train, args=args[1:], prog="fusedlstm train", default=saved)
        command()
    except CharLMError as error:
        print(f"fusedlstm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough; nothing is left to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and termination, so that they fall between two steps; a second one ends at once."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
