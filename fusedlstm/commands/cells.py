"""`fusedlstm cells`: which cells of a trained model stand for something."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.cells import SHORTEST, Report, find
from fusedlstm.charlm.labels import at_characters, chosen, tracks
from fusedlstm.charlm.sample import load_model
from fusedlstm.charlm.settings import CharLMError, Rule, check
from fusedlstm.charlm.texts import beginning

FORMATS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".html": lambda report: f'<!doctype html>\n<meta charset="utf-8">\n{report._repr_html_()}',
}
RULES: dict[str, Rule] = {
    "characters": (lambda v: v >= SHORTEST, f"at least {SHORTEST}"),
    "out": (lambda v: not v or Path(v).suffix in FORMATS, f"a file named *{' or *'.join(FORMATS)}"),
}
WIDTH = 176  # of the table at least, where a narrower one would leave out digits
SHOWN = 3  # cells whose reading of a text is shown


@dataclass(frozen=True)
class Cells:
    """Find the cells that stand for something: a quotation, a comment, the place in the line, ..."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run."""
    text: Annotated[Positional[str], arg(metavar="TEXT")]
    """File that the model has not been trained on."""
    labels: tuple[str, ...] = ()
    """What to look for, by name or by kind of text (any, prose, c, latex, wiki); by default all there is."""
    regex: UseAppendAction[tuple[str, ...]] = ()
    """NAME=PATTERN: look for the inside of what matches; may be given again."""
    function: UseAppendAction[tuple[str, ...]] = ()
    """MODULE:FUNCTION: look for what it returns for the text's bytes, an array; may be given again."""
    characters: int = 100_000
    """How much of the text to read."""
    quantity: Literal["tanh_c", "c", "h", "i", "f", "g", "o"] = "tanh_c"
    """What to look at in each cell."""
    out: str = ""
    """File for the report, too: .json or .html."""

    def __post_init__(self) -> None:
        for name, rule in RULES.items():
            check(name, getattr(self, name), rule)

    def __call__(self) -> None:
        rules = chosen(self.labels, self.regex, self.function)
        model, vocab = load_model(self.run)
        text = beginning(self.text, self.characters, vocab.kind)
        found = tracks(rules, text)
        if vocab.kind == "chars":
            found = {name: at_characters(values, text) for name, values in found.items()}
        seq_length = checkpoint.load(self.run).settings.seq_length
        report = find(model, vocab.encode(text), found, vocab.symbols, seq_length, self.quantity)
        console = Console(highlight=False, markup=False)
        console.width = max(console.width, WIDTH)
        self._show(report, console)
        if self.out:
            try:
                Path(self.out).write_text(FORMATS[Path(self.out).suffix](report), "utf-8")
            except OSError as error:
                raise CharLMError(f"--out: cannot write {self.out}: {error.strerror}") from None

    def _show(self, report: Report, console: Console) -> None:
        if report.findings:
            console.print(report.table())
        if report.skipped:
            console.print(f"not asked, as they hardly change in this text: {', '.join(report.skipped)}")
        for finding in [finding for finding in report.findings if finding.cells][:SHOWN]:
            console.print(f"\ncell {finding.layer}.{finding.cell}, {finding.label}:")
            console.print(finding.strip())
        console.print(f"\n{report.answer}")
