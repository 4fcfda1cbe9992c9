"""Who a record's names stand for, in the words of tables and plots."""

from __future__ import annotations

from benchmarks.results import Record

TITLES = {
    "ours": "fusedlstm",
    "torch": "nn.LSTM",
    "compile": "nn.LSTM, compiled",
    "loop": "torch loop",
    "numpy": "NumPy",
    "flashrnn": "FlashRNN",
    "haste": "Haste",
    "gpt": "transformer",
}
PLAIN = {"cpu": "oneDNN off", "cuda": "cuDNN off"}  # what "torch_plain" is


def device(record: Record) -> str:
    """Where a record was measured: "cpu" or "cuda"."""
    return "cuda" if any(record["machine"].get(key) for key in ("driver", "cudnn")) else "cpu"


def title(name: str, where: str) -> str:
    """A contender in words.

    Args:
        name: as in the record; "ours:NAME" is a further backend of ours.
        where: "cpu" or "cuda".
    """
    who, _, backend = name.partition(":")
    if who == "torch_plain":
        return f"nn.LSTM, {PLAIN[where]}"
    return f"{TITLES.get(who, who)} {backend}".strip()


def number(value: float) -> str:
    """Three digits: 0.0123, 1.23, 12.3, 123, 1,230."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"
