"""`fusedlstm repro`: the experiments of Karpathy's post and paper, each with its settings."""

import re
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, Suppress, arg, subcommand

from fusedlstm.charlm import repro
from fusedlstm.charlm.experiments import CELLS, EXPERIMENTS
from fusedlstm.charlm.settings import CharLMError

Files = Annotated[Positional[tuple[str, ...]], arg(metavar="FILE")]


@dataclass(frozen=True)
class Post:
    """An experiment of the post."""

    name: Suppress[str]
    files: Files = ()
    """Texts to train on, files or folders. Without any: --data."""
    data: str = ""
    """A known text or a URL, as `fusedlstm train` takes it."""
    scale: float = 1.0
    """Share of the full size: of the width, of the epochs, and of the dropout. A CPU wants 0.25 or less."""
    out: str = ""
    """Folder for the run and its REPORT.md; by default runs/NAME. A run that was stopped there goes on."""

    def __call__(self) -> None:
        print(f"report: {repro.post(self.name, self.files, self.data, self.scale, self.out)}")


@dataclass(frozen=True)
class Paper:
    """The paper's table of test losses by size, its LSTM figures beside ours."""

    files: Files = ()
    """The text, War and Peace in the paper. Without any: --data."""
    data: str = ""
    """A known text (warandpeace) or a URL."""
    cells: tuple[str, ...] = tuple(CELLS)
    """Layers x width of the networks, all of the paper's by default."""
    kinds: tuple[Literal["lstm", "gru", "rnn"], ...] = ("lstm",)
    """Kinds of the layers."""
    recipe: Literal["fast", "paper"] = "fast"
    """How they are trained: the paper's way (50 epochs of RMSProp), or ours."""
    out: str = ""
    """Folder for the runs and REPORT.md; by default runs/paper. What is done there is not trained again."""

    def __call__(self) -> None:
        report = repro.paper(self.files, self.data, self.cells, self.kinds, self.recipe, self.out)
        print(f"{report.read_text('utf-8')}\nreport: {report}")


@dataclass(frozen=True)
class NGrams:
    """The n-gram baseline: interpolated modified Kneser-Ney, all orders from one count."""

    files: Files = ()
    """The text. Without any: --data."""
    data: str = ""
    """A known text or a URL."""
    orders: str = "1-12"
    """Symbols of the longest n-grams, such as 1-5,20; the paper's figures count one less."""

    def __call__(self) -> None:
        losses = repro.ngram(self.files, self.data, parse_orders(self.orders))
        print(repro.ngram_table(losses), end="")


if TYPE_CHECKING:
    Experiment = Post | Paper | NGrams
else:  # one subcommand for each row of the table
    posts = [
        Annotated[Post, subcommand(name, default=Post(name), description=e.title + ".", prefix_name=False)]
        for name, e in EXPERIMENTS.items()
    ]
    others = [
        Annotated[Paper, subcommand("paper", prefix_name=False)],
        Annotated[NGrams, subcommand("ngram", prefix_name=False)],
    ]
    Experiment = reduce(or_, [*posts, *others])


@dataclass(frozen=True)
class Repro:
    """Run an experiment of the post or the paper again."""

    experiment: Annotated[Experiment, arg(name="")]

    def __call__(self) -> None:
        self.experiment()


def parse_orders(text: str) -> list[int]:
    """The orders that a text such as 1-5,20 names, ascending.

    Raises:
        CharLMError: when it names none.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,2})(?:-([1-9]\d{0,2}))?\s*", part)
        orders = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not orders:
            raise CharLMError(f"--orders must be numbers and ranges such as 1-5,20, got {text!r}")
        found.update(orders)
    return sorted(found)
