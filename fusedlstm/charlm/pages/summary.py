"""What a reading comes to: where its loss lies, and how the gates spend their time."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fusedlstm.charlm.labels import since

SHUT, OPEN = 0.1, 0.9  # a gate below the first or above the second is saturated
BRACKETS = "()[]{}<>"
CLASSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of code points; the first that holds counts
    "new line": lambda codes: codes == ord("\n"),
    "blank": lambda codes: (codes == ord(" ")) | (codes == ord("\t")),
    "small letter": lambda codes: (codes >= ord("a")) & (codes <= ord("z")),
    "capital letter": lambda codes: (codes >= ord("A")) & (codes <= ord("Z")),
    "digit": lambda codes: (codes >= ord("0")) & (codes <= ord("9")),
    "bracket": lambda codes: np.isin(codes, [ord(c) for c in BRACKETS]),
    "other sign of ASCII": lambda codes: codes < 0x80,
    "beyond ASCII": lambda codes: codes >= 0x80,
}
Row = dict[str, Any]


def losses(codes: np.ndarray, bits: np.ndarray) -> dict[str, list[Row]]:
    """The mean loss in bits by what a character is and where it stands, and P(`}`) by the distance to `{`.

    Args:
        codes: code points, or bytes, of the text [N].
        bits: what each character cost, the first nan [N].

    Returns:
        Rows by table; a row has a name, the mean and the count it is of.
    """
    known = np.isfinite(bits)
    line = 1 + np.append(0, since(codes == ord("\n"))[:-1])
    letter = np.any([CLASSES[name](codes) for name in ("small letter", "capital letter", "beyond ASCII")], 0)
    word = since(~letter)
    pairs = braces(codes)
    pairs = pairs[known[pairs[:, 1]]]
    return {
        "by_class": _by_class(codes[known], bits[known]),
        "by_line": buckets(line[known], bits[known]),
        "by_word": buckets(word[known & letter], bits[known & letter]),
        "by_text": buckets(np.arange(len(bits))[known], bits[known]),
        "brace": buckets(pairs[:, 1] - pairs[:, 0], np.exp2(-bits[pairs[:, 1]].astype(np.float64))),
    }


def buckets(places: np.ndarray, values: np.ndarray) -> list[Row]:
    """Means over places 1, 2 to 3, 4 to 7 and so on; buckets that are empty are left out.

    Args:
        places: whole numbers, at least 1 [n].
        values: what to take the means of [n].
    """
    rows = []
    which = np.floor(np.log2(places)).astype(int)
    for k in np.unique(which):
        first, last = 2**k, 2 ** (k + 1) - 1
        name = f"{first}" if k == 0 else f"{first:,} to {last:,}"
        rows.append(_row(name, values[which == k]))
    return rows


def braces(codes: np.ndarray) -> np.ndarray:
    """Where each `}` that has its `{` stands: both their places, as they close [pairs, 2]."""
    opened: list[int] = []
    pairs = []
    for n in np.flatnonzero((codes == ord("{")) | (codes == ord("}"))):
        if codes[n] == ord("{"):
            opened.append(int(n))
        elif opened:
            pairs.append((opened.pop(), n))
    return np.array(pairs, np.int64).reshape(-1, 2)


def saturation(gates: Mapping[str, np.ndarray]) -> list[Row]:
    """Which share of the time each cell's gates are shut, and which share they are open.

    Args:
        gates: name -> values [N, L, H].

    Returns:
        A row for each layer and gate, with the shares left and right [H].
    """
    return [
        {
            "layer": layer,
            "gate": name,
            "left": np.round((values[:, layer] < SHUT).mean(0), 4).tolist(),
            "right": np.round((values[:, layer] > OPEN).mean(0), 4).tolist(),
        }
        for layer in range(next(iter(gates.values())).shape[1])
        for name, values in gates.items()
    ]


def _by_class(codes: np.ndarray, bits: np.ndarray) -> list[Row]:
    rows, left = [], np.ones(len(codes), bool)
    for name, holds in CLASSES.items():
        here = left & holds(codes)
        left &= ~here
        if here.any():
            rows.append(_row(name, bits[here]))
    return rows


def _row(name: str, values: np.ndarray) -> Row:
    return {"name": name, "mean": float(values.mean(dtype=np.float64)), "count": len(values)}
