"""`fusedlstm html`: what goes on inside a model while it reads a text, as a page to look at."""

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from fusedlstm.charlm.pages import look
from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import CharLMError, Rule, check

RULES: dict[str, Rule] = {
    "characters": (lambda v: 1 <= v <= 1_000_000, "at least 1 and at most 1,000,000"),
    "cells": (lambda v: v is None or v >= 1, "at least 1"),
}
WIDEST = {"bytes": 1, "chars": 4}  # bytes of a character


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


def beginning(file: str, characters: int, kind: str) -> bytes:
    """The beginning of a text, so many of the model's characters.

    Raises:
        CharLMError: when it cannot be read, or must be UTF-8 and is not.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(characters * WIDEST[kind])
        if kind == "chars":
            text = codecs.getincrementaldecoder("utf-8")().decode(text)[:characters].encode()
    except OSError as error:
        raise CharLMError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CharLMError(f"{file} must be UTF-8 for this model: {error}") from None
    return text
