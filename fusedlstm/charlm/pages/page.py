"""A page about a model and a text: what is on it, and how it becomes one file."""

import base64
import json
import math
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fusedlstm.charlm.activations import Activations, activations
from fusedlstm.charlm.checkpoint import write_whole
from fusedlstm.charlm.labels import at_characters, chosen, tracks
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.pages.choice import WINDOW, excerpt, interest, side_by_side
from fusedlstm.charlm.pages.summary import losses, saturation
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.vocab import Vocab, code_points
from fusedlstm.charlm.watch import LOSSES, SAMPLES, read_metrics

QUANTITIES = ("tanh_c", "h", "f", "i", "o", "g")  # the first that fit are on the page
GATES = ("i", "f", "o")
SHORT = 8_000_000  # values of one quantity up to which all cells are kept
CELLS = 64  # of each layer that are kept for a longer text
BUDGET = 24_000_000  # bytes of activations, which the page spells with a third more
SCALE = 127  # 1 as int8
SHARE = 65535  # 1 as uint16
UNFINISHED = "\u00b7"  # a byte that completes no character
SCRIPTS = ("base.js", "reader.js", "plots.js", "main.js")
HEIGHT = 900  # pixels in a notebook


@dataclass(frozen=True)
class Page:
    """What is on a page.

    Args:
        facts: plain values.
        arrays: name -> numbers, each in the type in which the page has it.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def html(self) -> str:
        """The page as one file.

        Raises:
            CharLMError: when Jinja2 is not installed.
        """
        try:
            from jinja2 import Environment, StrictUndefined  # here: an extra
        except ImportError:
            raise CharLMError("a page takes Jinja2: pip install fusedlstm[inside]") from None
        folder = files(__package__)
        part = {name: (folder / name).read_text("utf-8") for name in ("page.html", "page.css", *SCRIPTS)}
        template = Environment(autoescape=True, undefined=StrictUndefined).from_string(part["page.html"])
        return template.render(
            facts=self.facts,
            # A text may hold </script>.
            data=json.dumps(self.facts, allow_nan=False).replace("<", "\\u003c"),
            arrays={name: _base64(array) for name, array in self.arrays.items()},
            style=part["page.css"],
            script="\n".join(part[name] for name in SCRIPTS),
        )

    def save(self, out: str | Path) -> None:
        """Writes the page to a file.

        Raises:
            CharLMError: when the disk refuses, or Jinja2 is not installed.
        """
        text = self.html()
        try:
            write_whole(Path(out), text.encode())
        except OSError as error:
            raise CharLMError(f"cannot write {out}: {error.strerror}") from None

    def _repr_html_(self) -> str:
        """The page in a frame, for a notebook."""
        title = escape(self.facts["title"])
        style = f"width:100%;height:{HEIGHT}px;border:0"
        return f'<iframe title="{title}" srcdoc="{escape(self.html())}" style="{style}"></iframe>'


def look(
    model: CharLM, vocab: Vocab, text: bytes, run: str | Path | None = None, cells: int | None = None
) -> Page:
    """Has a model read a text, and makes a page of it.

    Args:
        model: as for activations.
        vocab: of the model.
        text: in UTF-8 where the vocabulary is of characters.
        run: folder whose samples and losses are shown, too.
        cells: how many of each layer are kept, the most interesting; None for all of a short text (up to
            8 million activations), 64 of a longer one.

    Raises:
        CharLMError: as activations does; when the text has unknown characters; without scipy.
    """
    ids = vocab.encode(text)
    H, L = model.lstm.hidden_size, model.lstm.num_layers
    kept = _kept(cells, len(ids), L, H)
    shown = QUANTITIES[: max(1, BUDGET // (len(ids) * L * kept or 1))]
    made = activations(model, ids, tuple(dict.fromkeys((*shown, *GATES))))
    labels = tracks(chosen((), (), ()), text)
    if vocab.kind == "chars":
        labels = {name: at_characters(values, text) for name, values in labels.items()}
    return build(made, ids, vocab, labels, shown, kept, run)


def build(
    made: Activations,
    ids: np.ndarray,
    vocab: Vocab,
    labels: dict[str, np.ndarray],
    shown: tuple[str, ...] = QUANTITIES,
    kept: int | None = None,
    run: str | Path | None = None,
) -> Page:
    """A page of what is known of a reading.

    Args:
        made: all layers, with the quantities shown and GATES.
        ids: text [N].
        vocab: of the model.
        labels: name -> bool or float [N].
        shown: quantities on the page, the first of which says how interesting a cell is.
        kept: cells of each layer; None for all.
        run: folder whose samples and losses are shown, too.
    """
    first = made.values[shown[0]]
    N, L, H = first.shape
    found = interest(first.reshape(N, L * H), labels)
    order = found.order()
    layers = [np.sort(order[order // H == layer][:kept]) for layer in range(L)]  # [K] of L * H
    arrays = {
        f"{name}-{layer}": quantised(made.values[name][:, layer, columns - layer * H])
        for layer, columns in enumerate(layers)
        for name in shown
    }
    codes = code_points(vocab.symbols)
    facts = {
        "title": Path(run).resolve().name if run else "a text",
        "kind": vocab.kind,
        "characters": N,
        "text": glyphs(vocab, ids),
        "codes": codes.tolist(),
        "of": H,
        "layers": [(columns - layer * H).tolist() for layer, columns in enumerate(layers)],
        "quantities": list(shown),
        "left_out": [name for name in QUANTITIES if name not in shown],
        "bits": float(np.nanmean(made.bits)) if N > 1 else None,
        "interesting": [
            {
                "layer": k // H,
                "cell": k % H,
                "label": found.label[k].replace("_", " "),
                "measure": "AUROC" if found.binary[k] else "Spearman",
                "figure": float((1 + abs(found.d[k])) / 2 if found.binary[k] else abs(found.d[k])),
                "low": bool(found.d[k] < 0),
                "from": excerpt(first[:, k // H, k % H]),
            }
            for k in side_by_side(found, np.concatenate(layers))
        ],
        "window": WINDOW,
        "losses": losses(codes[ids], made.bits),
        "gates": saturation({name: made.values[name] for name in GATES}),
        **_history(run),
    }
    arrays |= {
        "ids": ids.astype(np.uint16),
        "likeliest": made.likeliest.astype(np.uint16),
        "probabilities": np.round(made.probabilities * SHARE).astype(np.uint16),
        "bits": made.bits.astype(np.float32),
    }
    return Page(facts, arrays)


def quantised(values: np.ndarray) -> np.ndarray:
    """Values from -1 to 1 [N, K] as int8, a cell's in a row [K, N]."""
    return np.round(np.clip(values.T.astype(np.float32), -1, 1) * SCALE).astype(np.int8)


def glyphs(vocab: Vocab, ids: np.ndarray) -> str:
    """A character for each id: where a byte ends a character that, else UNFINISHED [N]."""
    decoder = vocab.decoder()
    return "".join(decoder.piece([k])[-1:] or UNFINISHED for k in ids.tolist())


def _kept(cells: int | None, N: int, L: int, H: int) -> int:
    """How many cells of each layer are kept."""
    if cells is None:
        cells = H if N * L * H <= SHORT else CELLS
    return min(cells, H)


def _history(run: str | Path | None) -> dict[str, Any]:
    """What a run wrote as it learned, and its losses in bits."""
    if run is None:
        return {"samples": [], "curve": []}
    samples = [
        {"step": int(path.stem.rpartition("-")[2]), "text": path.read_text("utf-8", "replace")}
        for path in sorted((Path(run) / SAMPLES).glob("step-[0-9]*.txt"))
    ]
    curve = [
        {"step": line["step"]} | {name: bits(line[name]) for name in LOSSES if _finite(line.get(name))}
        for line in read_metrics(Path(run))
    ]
    return {"samples": samples, "curve": [point for point in curve if len(point) > 1]}


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _base64(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(little.tobytes()).decode()
