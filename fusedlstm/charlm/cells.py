"""Which cells stand for something: every cell against every label, on text that the model was not trained on.

The text is cut in two. On the first half each label picks its cell, and whether that is high or low where
the label holds; only the second half counts. The measure d, and what chance would give, are those of
`effects`. The best cell of a label is then held at its mean, to see what it is worth to the model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fusedlstm.charlm.activations import CHUNK, activations, bits_apart, clamped
from fusedlstm.charlm.effects import LEAST_TURN, Scores, compare, effects, ranks
from fusedlstm.charlm.labels import since
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.settings import CharLMError

SHORTEST = 10 * LEAST_TURN  # characters of the text
LEAST = 20  # places of a half where a label differs from its usual value
ALPHA = 0.05
STRONG = 0.8  # d of a cell that is said to stand for a label: an AUROC of 0.9
RESAMPLES = 1000
EXCERPT = 240  # characters
RULE = (
    f"on the second half of the text a cell's AUROC for a label is at least {(1 + STRONG) / 2:g} "
    f"(for a scalar label Spearman's rho {STRONG:g}) and its p over all cells and labels at most {ALPHA:g}"
)


@dataclass(frozen=True)
class Ablation:
    """What it costs in bits a character to hold a cell at its mean: where the label holds, and elsewhere.

    Args:
        low, high: 95 % interval of inside - outside, from chunks of the text drawn anew.
    """

    inside: float
    outside: float
    low: float
    high: float


@dataclass(frozen=True)
class Finding:
    """The best cell of a label.

    Args:
        label: its name.
        kind: binary or scalar.
        layer, cell: from 0.
        sign: 1 when the cell is high where the label holds, else -1.
        d: on the second half; below 0 when that says the opposite of the first.
        p: over all cells and labels.
        by_character: d of the best guess from the last character alone.
        late: d among places where the label has held for longer than a gradient reached back in training,
            against those where it does not hold; None where these are too few.
        cells: all (layer, cell) that count as interpretable by this label, the strongest first.
        remembering: those of them that beat by_character.
        ablation: of the best cell, where p is small enough.
        excerpt: some of the second half, and the cell there.
    """

    label: str
    kind: str
    layer: int
    cell: int
    sign: int
    d: float
    p: float
    by_character: float
    late: float | None
    cells: list[tuple[int, int]]
    remembering: list[tuple[int, int]]
    ablation: Ablation | None
    excerpt: tuple[str, list[float]]

    def row(self) -> dict[str, str]:
        """The finding in words."""
        a = self.ablation
        return {
            "label": self.label,
            "cell": f"{'+' if self.sign > 0 else '-'}{self.layer}.{self.cell}",
            "measure": "AUROC" if self.kind == "binary" else "rho",
            "best cell": self._figure(self.d),
            "p": f"{self.p:.3f}",
            "last character": self._figure(self.by_character),
            "held long": self._figure(self.late),
            "cells that count": str(len(self.cells)),
            "and remember": str(len(self.remembering)),
            "bits inside": f"{a.inside:+.2f}" if a else "",
            "bits outside": f"{a.outside:+.2f}" if a else "",
            "difference": f"{a.low:+.2f} to {a.high:+.2f}" if a else "",
        }

    def strip(self) -> Text:
        """The excerpt for a terminal, coloured by the cell: red where it is high, blue where it is low."""
        text, values = self.excerpt
        largest = max(map(abs, values)) or 1.0
        made = Text()
        for character, value in zip(text, values, strict=True):
            faded = round(255 * (1 - abs(value) / largest))
            colour = f"rgb(255,{faded},{faded})" if value > 0 else f"rgb({faded},{faded},255)"
            made.append("\u23ce\n" if character == "\n" else character, style=f"black on {colour}")
        return made

    def _figure(self, d: float | None) -> str:
        return "" if d is None else f"{(1 + d) / 2 if self.kind == 'binary' else d:.3f}"


@dataclass(frozen=True)
class Report:
    """The answer for a text: the findings, the strongest first, and labels that hardly change in this text.

    Args:
        characters: of the text.
        quantity: what was looked at.
        num_layers, rnn_size, seq_length: of the model and its training.
        bits: loss on the second half, in bits a character.
        findings: one for each label asked.
        skipped: labels not asked, since they differ from their usual value at fewer than 20 places of a half.
    """

    characters: int
    quantity: str
    num_layers: int
    rnn_size: int
    seq_length: int
    bits: float
    findings: list[Finding]
    skipped: list[str]

    @property
    def answer(self) -> str:
        """The share of cells that are interpretable, in a sentence or two."""
        counted, remembering = (
            len({cell for finding in self.findings for cell in getattr(finding, name)})
            for name in ("cells", "remembering")
        )
        of = self.num_layers * self.rnn_size
        return (
            f"{counted} of {of} cells ({counted / of:.1%}) are interpretable by these labels, {remembering} "
            f"of them tell more than the last character does. The rule: {RULE}."
        )

    def table(self) -> Table:
        """The findings for a terminal; those of labels that have a cell stand out."""
        rows = [finding.row() for finding in self.findings]
        heads = [name.replace(" ", "\n") for name in (rows[0] if rows else ())]
        table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for row, finding in zip(rows, self.findings, strict=True):
            table.add_row(*row.values(), style="bold" if finding.cells else "")
        return table

    def _repr_html_(self) -> str:
        rows = [finding.row() for finding in self.findings]
        lines = [_html(rows[0], "th")] if rows else []
        lines += [_html(row.values(), "td") for row in rows]
        return f"<p>{escape(self.answer)}</p>\n<table>\n" + "\n".join(lines) + "\n</table>\n"

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self) | {"answer": self.answer}, indent=1)


def find(
    model: CharLM,
    ids: np.ndarray,
    labels: Mapping[str, np.ndarray],
    symbols: Sequence[str],
    seq_length: int,
    quantity: str = "tanh_c",
) -> Report:
    """Looks for cells that stand for labels.

    Args:
        model: as for activations.
        ids: text that the model has not been trained on [N].
        labels: name -> bool or float [N].
        symbols: id -> character, for the excerpts.
        seq_length: characters that a gradient reached back in training.
        quantity: which of activations.QUANTITIES to look at.

    Raises:
        CharLMError: when the text is short, the model has no cells, or scipy is not installed.
    """
    if len(ids) < SHORTEST:
        raise CharLMError(
            f"the text must have at least {SHORTEST} characters for chance to show, got {len(ids)}"
        )
    half = len(ids) // 2
    first = activations(model, ids[:half], (quantity,))
    second = activations(model, ids[half:], (quantity,), state=first.state)
    one, two = (part.values[quantity].reshape(len(part.bits), -1) for part in (first, second))
    skipped = [name for name, label in labels.items() if not _changes(label, half)]
    halves = {name: (label[:half], label[half:]) for name, label in labels.items() if name not in skipped}
    before = second.before[0][:, : len(two) // CHUNK], second.before[1][:, : len(two) // CHUNK]
    findings: list[Finding] = []
    changes: dict[int, np.ndarray] = {}  # of the loss while a cell is held, by cell
    for name, scores in compare(one, two, halves).items():
        best, sign, counted = _picked(scores)
        cell, label = divmod(best, model.lstm.hidden_size), halves[name][1]
        by_character = float(effects(ranks(_guess(ids, halves[name][0])), label)[0, 0])
        ablation = None
        if scores.p[best] <= ALPHA:
            if best not in changes:
                mean = float(one[:, best].mean(dtype=np.float64))
                held, states = clamped(model, before, *cell, quantity, mean)
                changes[best] = bits_apart(held, ids[half:], states) - _in_chunks(second.bits)
            ablation = _ablation(changes[best], _in_chunks(label))
        found = Finding(
            name,
            "binary" if label.dtype == bool else "scalar",
            *cell,
            sign,
            sign * float(scores.second[best]),
            float(scores.p[best]),
            by_character,
            _late(sign * two[:, best], labels[name], seq_length),
            [divmod(k, model.lstm.hidden_size) for k in counted],
            [divmod(k, model.lstm.hidden_size) for k in counted if abs(scores.second[k]) > by_character],
            ablation,
            _excerpt(ids[half:], two[:, best], label, symbols),
        )
        findings.append(found)
    findings.sort(key=lambda found: -found.d)
    shape = model.lstm.num_layers, model.lstm.hidden_size
    return Report(len(ids), quantity, *shape, seq_length, float(np.nanmean(second.bits)), findings, skipped)


def _picked(scores: Scores) -> tuple[int, int, list[int]]:
    """The cell that the first half picks, its sign there, and those that count on the second, best first."""
    best = int(np.abs(scores.first).argmax())
    agreed = scores.second * np.sign(scores.first)
    counted = [int(k) for k in np.argsort(-agreed) if agreed[k] >= STRONG and scores.p[k] <= ALPHA]
    return best, 1 if scores.first[best] >= 0 else -1, counted


def _changes(label: np.ndarray, half: int) -> bool:
    """Whether a label differs from its usual value often enough in either half."""
    parts = label[:half], label[half:]
    return all(len(part) - np.unique(part, return_counts=True)[1].max() >= LEAST for part in parts)


def _guess(ids: np.ndarray, before: np.ndarray) -> np.ndarray:
    """For the second half, the label's mean after the same character in the first [N - half, 1]."""
    half, V = len(before), int(ids.max()) + 1
    counts, sums = np.bincount(ids[:half], minlength=V), np.bincount(ids[:half], before, minlength=V)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), before.mean())
    return means[ids[half:], None]


def _late(values: np.ndarray, label: np.ndarray, seq_length: int) -> float | None:
    """d among places where a binary label has held for long, and those where it does not hold.

    Args:
        values: of a cell, over the end of the text [n].
        label: over all of it [N].
    """
    if label.dtype != bool:
        return None
    long, label = ((part[-len(values) :]) for part in (since(~label) > seq_length, label))
    kept = long | ~label
    return float(effects(ranks(values[kept, None]), label[kept])[0, 0]) if long.sum() >= LEAST else None


def _in_chunks(values: np.ndarray) -> np.ndarray:
    """Values along a text [N] as rows [chunks, CHUNK], without what is left over."""
    return values[: len(values) // CHUNK * CHUNK].reshape(-1, CHUNK)


def _ablation(change: np.ndarray, label: np.ndarray) -> Ablation:
    """What a change in bits comes to where a label holds, or a scalar one is above its mean.

    Args:
        change, label: in chunks, from each of which the first change is unknown [chunks, CHUNK].
    """
    # A character is predicted from what held before it.
    change = change[:, 1:].astype(np.float64)
    where = (label if label.dtype == bool else label > label.mean())[:, :-1]
    sums = np.stack([(change * here).sum(1) for here in (where, ~where)])  # [2, chunks]
    counts = np.stack([here.sum(1) for here in (where, ~where)])
    inside, outside = sums.sum(1) / np.maximum(counts.sum(1), 1)
    chunks = len(change)
    drawn = np.random.default_rng(0).multinomial(chunks, np.full(chunks, 1 / chunks), RESAMPLES).T
    with np.errstate(invalid="ignore"):  # a draw without any place of one kind is nan, and does not count
        low, high = np.nanpercentile(np.subtract(*(sums @ drawn) / (counts @ drawn)), (2.5, 97.5))
    return Ablation(float(inside), float(outside), float(low), float(high))


def _excerpt(
    ids: np.ndarray, values: np.ndarray, label: np.ndarray, symbols: Sequence[str]
) -> tuple[str, list[float]]:
    """The stretch of a text in which the label changes most, and the cell there."""
    stretches = label[: len(label) // EXCERPT * EXCERPT].reshape(-1, EXCERPT)
    start = int(stretches.astype(np.float64).std(1).argmax()) * EXCERPT
    part = slice(start, start + EXCERPT)
    return "".join(symbols[k] for k in ids[part]), [round(float(v), 4) for v in values[part]]


def _html(cells: Iterable[str], tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
