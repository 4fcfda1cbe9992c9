"""What an id stands for: text to ids, and ids to text as they come."""

import codecs
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fusedlstm.charlm.settings import CharLMError, check

Kind = Literal["bytes", "chars"]
Unknown = Literal["error", "skip", "replace"]

ENCODINGS = {"bytes": "latin-1", "chars": "utf-8"}  # read in it, a text is its symbols
CODES = {"bytes": 256, "chars": sys.maxunicode + 1}  # that a symbol can have
STAND_INS = "\ufffd? "  # for an unknown character: the first of them that is known
NAMED = 10  # unknown characters that an error names


@dataclass(frozen=True)
class Vocab:
    """The symbols of a text.

    Args:
        kind: bytes, or chars of a text in UTF-8.
        symbols: id -> character, ascending [V]; a byte is the character of that number.

    Raises:
        ValueError: when these are not such symbols.
    """

    kind: Kind
    symbols: str

    def __post_init__(self) -> None:
        if self.kind not in ENCODINGS:
            raise ValueError(f"the kind of a vocabulary must be bytes or chars, got {self.kind!r}")
        self.symbols.encode(ENCODINGS[self.kind])  # a UnicodeEncodeError is a ValueError
        if list(self.symbols) != sorted(set(self.symbols)):
            raise ValueError("the symbols of a vocabulary must ascend")

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def table(self) -> np.ndarray:
        """Code of a symbol -> id, in the smallest type that holds all ids; 0 for codes that do not occur."""
        table = np.zeros(CODES[self.kind], np.uint8 if len(self) <= 256 else np.uint16)
        table[code_points(self.symbols)] = np.arange(len(self))
        return table

    def encode(self, text: bytes | str, unknown: Unknown = "error") -> np.ndarray:
        """The ids of a text [n], uint8 or uint16.

        Args:
            text: bytes may be any; a str may carry bytes that are no UTF-8 as Python's lone surrogates.
            unknown: what happens to characters without an id: an error, nothing ("skip"), or one of
                STAND_INS in their place ("replace").

        Raises:
            CharLMError: when a character has no id and shall have one, naming it and its place.
        """
        check("unknown", unknown, (lambda v: v in ("error", "skip", "replace"), "error, skip or replace"))
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")
        others = [c for c in dict.fromkeys(text) if not self._knows(c)]
        if others:
            stand_in = next(filter(self._knows, STAND_INS), None) if unknown == "replace" else None
            if unknown != "skip" and not stand_in:
                raise CharLMError(self._without(text, others, unknown))
            text = text.translate({ord(c): stand_in for c in others})
        return self.table[code_points(self._symbols(text))]

    def shown(self, id: int) -> str:
        """A symbol in words."""
        symbol = self.symbols[id].encode(ENCODINGS[self.kind])
        return shown(symbol.decode("utf-8", "surrogateescape"))

    def decoder(self) -> "Decoder":
        """A reader of ids, from the start of a text."""
        return Decoder(self)

    def record(self) -> dict[str, str]:
        """The vocabulary as plain values."""
        return {"kind": self.kind, "symbols": self.symbols}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Vocab":
        """The vocabulary of a record.

        Raises:
            ValueError, KeyError, TypeError or AttributeError: when it is none.
        """
        return cls(record["kind"], record["symbols"])

    def _symbols(self, text: str) -> str:
        return text.encode("utf-8", "surrogateescape").decode(ENCODINGS[self.kind])

    def _knows(self, character: str) -> bool:
        try:
            return all(symbol in self.symbols for symbol in self._symbols(character))
        except UnicodeError:  # a lone surrogate: no character, and perhaps no byte either
            return False

    def _without(self, text: str, others: list[str], unknown: str) -> str:
        """The error's message."""
        if unknown == "replace":
            return f"no character can stand in for unknown ones: the model knows none of {list(STAND_INS)}"
        names = ", ".join(f"{shown(c)} at {text.index(c)}" for c in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        return f"the text must use characters of the training text, got others: {names}{more}"


class Decoder:
    """Ids to text; a character comes when it is whole, and what is no UTF-8 becomes U+FFFD."""

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, ids: Iterable[int]) -> str:
        """The characters that these ids complete, maybe none."""
        symbols = "".join(self.vocab.symbols[id] for id in ids)
        return self.utf8.decode(symbols.encode(ENCODINGS[self.vocab.kind]))

    def end(self) -> str:
        """What is left of a character that was cut off; the next piece begins a text."""
        return self.utf8.decode(b"", final=True)


def code_points(symbols: str) -> np.ndarray:
    """The numbers of symbols, bytes or code points [n], uint32."""
    return np.frombuffer(symbols.encode("utf-32-le"), "<u4")


def shown(character: str) -> str:
    """A character in words; a lone surrogate is the byte that Python made it of."""
    byte = ord(character) - 0xDC00
    return f"byte {byte:#04x}" if 0x80 <= byte < 0x100 else repr(character)
