"""Which cells of a model are worth a look on a text, and what they go with there."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fusedlstm.charlm.effects import effects, ranks

SAMPLE = 20_000  # characters that are enough to compare cells and labels
LEAST = 0.002  # share of the text in which a label must differ from its usual value
WINDOW = 280  # characters of an excerpt
SHOWN = 12


@dataclass(frozen=True)
class Interest:
    """How interesting each cell is, and what for [C].

    Args:
        d: the rank correlation with the label that it goes with best, -1 to 1; 0 without any.
        label: the name of that; empty without any.
        binary: whether that label holds or not, rather than being a number.
        spread: standard deviation.
    """

    d: np.ndarray
    label: list[str]
    binary: list[bool]
    spread: np.ndarray

    def order(self) -> np.ndarray:
        """The cells, the most interesting first [C]."""
        return np.lexsort((-self.spread, -np.abs(self.d)))


def interest(values: np.ndarray, labels: Mapping[str, np.ndarray]) -> Interest:
    """Compares cells and labels on the text itself, which flatters both; chance is what `cells` is for.

    Args:
        values: [N, C].
        labels: name -> bool or float [N].

    Raises:
        CharLMError: when scipy is not installed.
    """
    thin = slice(None, None, -(-len(values) // SAMPLE))
    values = values[thin].astype(np.float32)
    thinned = {name: label[thin] for name, label in labels.items()}
    asked = {name: label for name, label in thinned.items() if _changes(label)}
    spread = values.std(0)
    C = len(spread)
    if not asked:
        return Interest(np.zeros(C), [""] * C, [False] * C, spread)
    ranked = ranks(values)
    d = np.stack([effects(ranked, label)[0] for label in asked.values()])  # [labels, C]
    best = np.abs(d).argmax(0)
    names = list(asked)
    found = [names[k] for k in best]
    return Interest(d[best, np.arange(C)], found, [asked[name].dtype == bool for name in found], spread)


def side_by_side(found: Interest, kept: np.ndarray) -> list[int]:
    """Some of the kept cells [K] that differ: the best of each label, then those that are left."""
    order = [int(k) for k in found.order() if k in set(kept.tolist())]
    firsts: dict[str, int] = {}
    for k in order:
        firsts.setdefault(found.label[k], k)
    chosen = list(firsts.values())
    return (chosen + [k for k in order if k not in chosen])[:SHOWN]


def excerpt(values: np.ndarray) -> int:
    """Where the stretch of WINDOW characters begins in which a cell [N] changes most."""
    whole = values[: max(len(values) // WINDOW, 1) * WINDOW]
    if len(whole) < WINDOW:
        return 0
    return int(whole.reshape(-1, WINDOW).astype(np.float32).std(1).argmax()) * WINDOW


def _changes(label: np.ndarray) -> bool:
    usual = np.unique(label, return_counts=True)[1].max()
    return len(label) - usual >= LEAST * len(label)
