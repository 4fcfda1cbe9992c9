"""How many of the lines that a model wrote it has not learnt by heart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusedlstm.charlm.settings import CharLMError


@dataclass(frozen=True)
class Novelty:
    """Lines that stand in none of the texts, of all lines."""

    novel: int
    lines: int

    def __str__(self) -> str:
        share = f" ({self.novel / self.lines:.1%})".replace("%", " %") if self.lines else ""
        return f"novel lines: {self.novel} of {self.lines}{share}"


def lines_of(before: str, text: str, whole: bool) -> list[str]:
    """The lines that a model wrote, stripped, but for empty ones.

    Args:
        before: the text that it started from, whose last line it may have gone on with.
        text: what it wrote.
        whole: the text is over; else its last line was cut short, and does not count.
    """
    lines = (before.rpartition("\n")[2] + text).split("\n")
    return [line.strip() for line in (lines if whole else lines[:-1]) if line.strip()]


def novelty(lines: Sequence[str], files: Iterable[str | Path]) -> Novelty:
    """Looks the lines up in some texts, which may be larger than the memory.

    Raises:
        CharLMError: when a text cannot be read.
    """
    unknown = set(lines)
    for file in files:
        try:
            with open(file, encoding="utf-8", errors="replace", newline="\n") as text:
                unknown.difference_update(line.strip() for line in text)
        except OSError as error:
            raise CharLMError(f"--novel-against: cannot read {file}: {error.strerror}") from None
    return Novelty(sum(line in unknown for line in lines), len(lines))
