"""`fusedlstm html`: what goes on inside a model while it reads a text, as a page to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fusedlstm.charlm.pages import look
from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import Rule, check
from fusedlstm.charlm.texts import beginning

RULES: dict[str, Rule] = {
    "characters": (lambda v: 1 <= v <= 1_000_000, "at least 1 and at most 1,000,000"),
    "cells": (lambda v: v is None or v >= 1, "at least 1"),
}


@dataclass(frozen=True)
class Html:
    """Write a page on which to see what each cell does with a text, and what the model expects next."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    text: Annotated[Positional[str], arg(metavar="TEXT")]
    """File to read."""
    out: str = "page.html"
    """Where to write the page: one file, which needs no network."""
    characters: int = 5000
    """How much of the text to read."""
    cells: int | None = None
    """How many cells of each layer to keep, the most interesting; by default all, of a long text 64."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)

    def __call__(self) -> None:
        model, vocab = load_model(self.run)
        text = beginning(self.text, self.characters, vocab.kind)
        look(model, vocab, text, self.run, self.cells).save(self.out)
        print(f"{self.out}: {Path(self.out).stat().st_size / 1e6:.1f} MB; open it in a browser")
