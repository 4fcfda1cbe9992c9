"""`fusedlstm train`: flags, a TOML file, a preset or a run to go on with, all of them the same settings."""

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from types import FrameType
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.settings import PRESETS, CharLMError, Settings
from fusedlstm.charlm.train import train

# char-rnn's names of flags, where they are not ours.
CHARRNN = {
    "--data-dir": "",  # the text has no flag here
    "--max-epochs": "--epochs",
    "--eval-val-every": "--save-every",
    "--checkpoint-dir": "--out",
    "--val-frac": "--val-fraction",
    "--init-from": "--resume",
}


@dataclass(frozen=True)
class Options(Settings):
    """The settings as flags, the texts without one."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE")] = ()


@dataclass(frozen=True)
class Train:
    """Train a character model on a text, from its bytes."""

    settings: Annotated[Options, arg(name="")] = field(default_factory=Options)
    config: str = ""
    """TOML file of settings; flags count more."""
    preset: str = ""
    """A whole recipe of settings by its name (charrnn); flags count more."""
    resume: str = ""
    """Folder of a run to go on with, by its own settings; only some of them may be given anew."""
    checkpoint: str = "last"
    """Which of the run's checkpoints to go on from: last, best or a step."""

    def __call__(self) -> None:
        with stop_signals() as stops:
            train(self.settings, self.resume, stop=lambda: bool(stops), which=self.checkpoint)


def parse(args: Sequence[str]) -> Train:
    """The command line of `fusedlstm train`.

    Raises:
        CharLMError: when the settings that it starts from do not serve.
    """
    args = [word for arg in args for word in _translated(arg)]
    command = tyro.cli(Train, args=args, prog="fusedlstm train")
    given = [name for name in ("config", "preset", "resume") if getattr(command, name)]
    if len(given) > 1:
        raise CharLMError(f"give one of --config, --preset and --resume, got --{' and --'.join(given)}")
    if not given:
        return command
    base = Train(Options(**asdict(_base(command))), command.config, command.preset, command.resume)
    return tyro.cli(Train, args=args, prog="fusedlstm train", default=base)


def _base(command: Train) -> Settings:
    if command.resume:
        return checkpoint.load(command.resume, command.checkpoint).settings
    if command.config:
        return Settings.from_toml(command.config)
    if command.preset not in PRESETS:
        raise CharLMError(f"--preset must be one of {', '.join(PRESETS)}, got {command.preset!r}")
    return Settings().but(PRESETS[command.preset])


def _translated(word: str) -> list[str]:
    """A word of the command line; char-rnn's flags, with one dash and its names, become ours."""
    flag, equals, value = word.partition("=")
    long = re.sub("^-(?=[a-z]{2})", "--", flag).replace("_", "-")
    if not long.startswith("--") or (long[2:].replace("-", "_") not in KNOWN and long not in CHARRNN):
        return [word]
    ours = CHARRNN.get(long, long)
    return [ours + equals + value] if ours else [value] if equals else []


KNOWN = {f.name for f in fields(Settings)}


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
