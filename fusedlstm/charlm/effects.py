"""How strongly numbers along a text go together with a label of it, and what chance alone would give.

The measure is a rank correlation d from -1 to 1: 2 AUROC - 1 for a binary label, Spearman's for a scalar
one. Text repeats itself, so that neighbours are no independent witnesses. Chance is therefore what is left
of d when the label is turned round its text by some hundred characters or more, in the best of all cells
for all labels at once. (Bonferroni or Benjamini and Hochberg over the labels would ask for p below 0.05 /
labels, and K turns give none below 1 / (K + 1); the same turns for all labels keep what these have in
common.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusedlstm.charlm.settings import CharLMError

TURNS = 200  # K
LEAST_TURN = 500  # characters
COLUMNS = 64  # cells ranked at a time, in float64


@dataclass(frozen=True)
class Scores:
    """A label against all C cells: d on either half of a text, and p on the second [C]."""

    first: np.ndarray
    second: np.ndarray
    p: np.ndarray


def compare(
    first: np.ndarray, second: np.ndarray, labels: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int = 0
) -> dict[str, Scores]:
    """Every label against every cell.

    Args:
        first, second: the cells over either half of a text [N, C]; the second is longer than 2 LEAST_TURN.
        labels: name -> bool or float over either half [N].
        seed: of the turns.

    Returns:
        The scores by label; p is over all cells and labels.
    """
    if not labels:
        return {}
    ranked = ranks(first)
    picked = {name: effects(ranked, before)[0] for name, (before, _) in labels.items()}
    ranked = ranks(second)
    n = len(second)
    turns = np.random.default_rng(seed).integers(LEAST_TURN, n - LEAST_TURN, TURNS, endpoint=True)
    true = {name: effects(ranked, after)[0] for name, (_, after) in labels.items()}
    chance = {
        name: np.abs(effects(ranked, after, turns)).max(1) for name, (_, after) in labels.items()
    }  # [K]
    # A label that holds seldom finds larger d by chance: each is measured by what it usually finds.
    usual = {name: max(np.median(found), np.finfo(np.float32).tiny) for name, found in chance.items()}
    largest = np.sort(np.max([chance[name] / usual[name] for name in labels], axis=0))

    def p(name: str) -> np.ndarray:
        fewer = np.searchsorted(largest, np.abs(true[name]) / usual[name])
        return (1 + TURNS - fewer) / (1 + TURNS)

    return {name: Scores(picked[name], true[name], p(name)) for name in labels}


def ranks(values: np.ndarray) -> np.ndarray:
    """The ranks in each column of [N, C], equals sharing theirs, centred and as shares of N, float32.

    Raises:
        CharLMError: when scipy is not installed.
    """
    try:
        from scipy.stats import rankdata  # type: ignore[import-untyped]  # here: an extra, and slow to import
    except ImportError:
        raise CharLMError("to look for cells takes scipy: pip install fusedlstm[inside]") from None
    N, C = values.shape
    ranked = np.empty((N, C), np.float32)
    for k in range(0, C, COLUMNS):
        columns = np.ascontiguousarray(values[:, k : k + COLUMNS].T)  # as they lie they sort more slowly
        ranked[:, k : k + COLUMNS] = (rankdata(columns, axis=1).T - (N + 1) / 2) / N
    return ranked


def effects(ranked: np.ndarray, label: np.ndarray, turns: Sequence[int] | np.ndarray = (0,)) -> np.ndarray:
    """The rank correlations of cells with a label that is turned by so many places.

    Args:
        ranked: the cells, from ranks [N, C].
        label: bool or numbers [N].
        turns: places [K].

    Returns:
        d [K, C]; 0 where a cell, or the label, is always the same.
    """
    if label.dtype == bool:
        ones = int(label.sum())
        weights = label * np.float32(2 * len(label) / max(ones * (len(label) - ones), 1))
        norms = np.ones(1)
    else:
        weights = ranks(label[:, None])[:, 0]
        norms = np.linalg.norm(weights) * np.linalg.norm(ranked, axis=0)
    turned = np.stack([np.roll(weights, turn) for turn in turns]) @ ranked
    return turned / np.where(norms > 0, norms, np.inf)
