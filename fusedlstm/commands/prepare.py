"""`fusedlstm prepare`: reads a long text once, so that every training on it starts at once."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from tyro.conf import Positional, arg

from fusedlstm.charlm import corpus, texts
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.vocab import Kind

COMMONEST = 10  # symbols that are shown


@dataclass(frozen=True)
class Prepare:
    """Turn a long text into a folder of ids, from which training starts at once."""

    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE")]
    """Files in any language, or folders (see glob), read one after the other."""
    out: str
    """New folder for the ids; give it to train in place of the files."""
    vocab: Kind = "bytes"
    """What one id stands for: a byte, or a character of a text in UTF-8."""
    glob: str = Settings.glob
    """Which files of a folder are read, in the order of their names."""

    def __call__(self) -> None:
        out = Path(self.out)
        if not self.files:
            raise CharLMError("FILE must be a text to prepare, got none")
        if out.exists():
            raise CharLMError(f"--out must be a new folder, {out} is there already")
        text = texts.find(Settings(files=self.files, vocab=self.vocab, glob=self.glob))
        counted = corpus.count(text, self.vocab)
        corpus.prepare(out, text, counted)
        print(f"{text.name}: {sum(text.sizes()):,} bytes; {describe(counted)}")
        print(f"written to {out}; to train on it: fusedlstm train {shlex.quote(str(out))}{self._kind_flag()}")

    def _kind_flag(self) -> str:
        return "" if self.vocab == Settings.vocab else f" --vocab {self.vocab}"


def describe(counted: corpus.Counted) -> str:
    """What a text is made of."""
    n = counted.counts.sum()
    shares = counted.counts / n
    entropy = (shares * np.log2(1 / shares)).sum()
    order = np.argsort(-shares, kind="stable")[:COMMONEST]
    commonest = ", ".join(f"{counted.vocab.shown(i)} {shares[i]:.1%}" for i in order)
    return (
        f"{n:,} ids of {len(shares):,} symbols; entropy of order 0: {entropy:.3f} bits\n"
        f"the commonest: {commonest}"
    )
