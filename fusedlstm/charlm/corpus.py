"""A text as ids: counted in a first pass, numbered in a second, a block at a time; and how it is split."""

import codecs
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fusedlstm.charlm import texts
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.streams import counts, fit
from fusedlstm.charlm.texts import Text
from fusedlstm.charlm.vocab import CODES, ENCODINGS, Kind, Vocab, code_points

IN_MEMORY = 2**26  # bytes of a text whose ids are kept in memory; those of a longer one are kept in a file
LARGEST = 2**16  # symbols
IDS, RECORD = "ids.bin", "corpus.json"  # the files of a prepared folder


class Counted(NamedTuple):
    """What the first pass over a text finds."""

    vocab: Vocab
    counts: np.ndarray  # [V]
    sha256: str


class Split(NamedTuple):
    """A text in parts, each as Streams takes it: ids [n], maybe none, or streams [B, n + 1]."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def counts(self, V: int) -> np.ndarray:
        """How often each id occurs in the training part [V]."""
        return counts(self.train, V)


@dataclass(frozen=True)
class Corpus:
    """A text as ids 0..V-1 of the symbols that occur in it."""

    name: str
    vocab: Vocab
    ids: np.ndarray  # [N] uint8 or uint16, in memory or a file that is mapped
    sha256: str  # of the text's bytes

    @classmethod
    def from_bytes(cls, name: str, text: bytes, kind: Kind = "bytes") -> "Corpus":
        """Numbers the distinct symbols of a text.

        Raises:
            CharLMError: as from count.
        """
        return cls.from_text(Text(name, (text,)), kind)

    @classmethod
    def from_text(cls, text: Text, kind: Kind) -> "Corpus":
        """Numbers the distinct symbols of a text, in memory.

        Raises:
            CharLMError: as from count.
        """
        counted = count(text, kind)
        ids = np.concatenate(list(_numbered(text, counted)))
        return cls(text.name, counted.vocab, ids, counted.sha256)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Corpus":
        """A prepared text, its ids mapped: nothing of them is read yet.

        Raises:
            CharLMError: when the folder holds none, or a damaged one.
        """
        try:
            record = json.loads(Path(folder, RECORD).read_text("utf-8"))
            n, dtype, size = record["n"], np.dtype(record["dtype"]), Path(folder, IDS).stat().st_size
            if size != n * dtype.itemsize:
                raise ValueError(f"{IDS} must have {n * dtype.itemsize} bytes, has {size}")
            ids = np.memmap(Path(folder, IDS), dtype, "r")
            return cls(record["name"], Vocab.from_record(record["vocab"]), ids, record["sha256"])
        except OSError as error:
            raise CharLMError(f"cannot read the prepared text in {folder}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CharLMError(f"the prepared text in {folder} is damaged: {error}") from None

    def split(self, settings: Settings) -> Split:
        """The parts to train on, to validate on and to test on, as `settings.split` says.

        Raises:
            CharLMError: when it says nothing known, or the text is too short for it.
        """
        made = SPLITS.get(settings.split, _sizes)(self.ids, settings)
        if made.train.size < 2:
            expected = f"leave at least 2 of {len(self.ids):,} {self.vocab.kind} to train on"
            raise CharLMError(f"--split {settings.split} must {expected}, leaves {made.train.size}")
        return made


def load(settings: Settings) -> Corpus:
    """The text that the settings name: prepared, or read; a long one is prepared in the user's cache.

    Raises:
        CharLMError: when there is no such text, it cannot be had, or it does not serve.
    """
    files, kind = settings.files, settings.vocab
    if files and settings.data != Settings.data:
        raise CharLMError(f"give FILE or --data, not both: got {' '.join(files)} and {settings.data}")
    if any(map(is_prepared, files)):
        return _prepared(files, kind)
    text = texts.find(settings)
    if sum(text.sizes()) <= IN_MEMORY:
        return Corpus.from_text(text, kind)
    counted = count(text, kind)
    folder = texts.cache() / "ids" / f"{counted.sha256}-{kind}"
    if not is_prepared(folder):
        try:
            prepare(folder, text, counted)
        except CharLMError:
            if not is_prepared(folder):  # by another process of the same run
                raise
    return replace(Corpus.from_folder(folder), name=text.name)


def count(text: Text, kind: Kind) -> Counted:
    """The first pass over a text: its symbols, how often each occurs, and its checksum.

    Raises:
        CharLMError: when it cannot be read, has fewer than two symbols, more than LARGEST different ones, or
            is to be characters and no UTF-8.
    """
    found, digest = np.zeros(CODES[kind], np.int64), hashlib.sha256()
    for codes in _codes(text, kind, digest.update):
        of_block = np.bincount(codes)
        found[: len(of_block)] += of_block
    n = found.sum()
    if n < 2:
        raise CharLMError(f"the text {text.name!r} must have at least 2 {kind} to learn from, got {n}")
    occurring = np.flatnonzero(found)
    if len(occurring) > LARGEST:
        expected = f"at most {LARGEST:,} different ones"
        raise CharLMError(f"--vocab {kind} takes {expected}, {text.name!r} has {len(occurring):,}: try bytes")
    return Counted(Vocab(kind, "".join(map(chr, occurring))), found[occurring], digest.hexdigest())


def prepare(folder: str | Path, text: Text, counted: Counted) -> None:
    """The second pass: writes the ids and their record into a new folder, which is there as a whole or not.

    Raises:
        CharLMError: when the text has changed, or the disk refuses.
    """
    record = {
        "name": text.name,
        "vocab": counted.vocab.record(),
        "sha256": counted.sha256,
        "n": int(counted.counts.sum()),
        "dtype": counted.vocab.table.dtype.str,
    }
    folder = Path(folder)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        _write(temporary / IDS, (ids.tobytes() for ids in _numbered(text, counted)))
        _write(temporary / RECORD, iter([json.dumps(record, indent=1).encode()]))
        temporary.rename(folder)
    except OSError as error:
        raise CharLMError(f"cannot write the ids of {text.name} to {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_prepared(folder: str | Path) -> bool:
    """Whether a folder holds a prepared text."""
    return Path(folder, RECORD).is_file()


def _prepared(files: tuple[str, ...], kind: Kind) -> Corpus:
    if len(files) > 1:
        raise CharLMError(f"a prepared text must be the only FILE, got {' '.join(files)}")
    text = Corpus.from_folder(files[0])
    if text.vocab.kind != kind:
        raise CharLMError(f"--vocab must be {text.vocab.kind}, as {files[0]} was prepared, got {kind}")
    return text


def _codes(text: Text, kind: Kind, digest: Callable[[bytes], None]) -> Iterator[np.ndarray]:
    """The numbers of the symbols of a text, block after block, each shown to the digest."""
    decoder, done = codecs.getincrementaldecoder(ENCODINGS[kind])(), 0
    for block in chain(text.blocks(), [b""]):  # the empty one ends the text
        digest(block)
        pending = len(decoder.getstate()[0])
        try:
            symbols = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            place = text.place(done - pending + error.start)
            raise CharLMError(f"--vocab {kind} needs a text in UTF-8, {place} is not: try bytes") from None
        done += len(block)
        yield code_points(symbols)


def _numbered(text: Text, counted: Counted) -> Iterator[np.ndarray]:
    """The ids of a text, block after block."""
    digest = hashlib.sha256()
    for codes in _codes(text, counted.vocab.kind, digest.update):
        yield counted.vocab.table.take(codes)  # twice as fast as table[codes]
    if digest.hexdigest() != counted.sha256:
        raise CharLMError(f"the text {text.name!r} has changed while it was read: start again")


def _write(file: Path, blocks: Iterator[bytes]) -> None:
    with open(file, "wb") as opened:
        opened.writelines(blocks)
        opened.flush()
        os.fsync(opened.fileno())


def _contiguous(ids: np.ndarray, settings: Settings) -> Split:
    kept = len(ids) - int(len(ids) * settings.val_fraction)
    return Split(ids[:kept], ids[kept:], ids[:0])


def _charrnn(ids: np.ndarray, settings: Settings) -> Split:
    """As karpathy/char-rnn: B streams of whole chunks; the last chunks of each stream validate."""
    B, T = fit(ids, settings.batch_size, settings.seq_length)
    chunks = (len(ids) - 1) // (B * T)  # in each stream
    kept = max(1, int(chunks * (1 - settings.val_fraction)))

    def cut(first: int, last: int) -> np.ndarray:
        """A stretch of chunks of each stream, with the id after it."""
        windows = sliding_window_view(ids, (last - first) * T + 1)
        return windows[first * T :: chunks * T][:B]

    return Split(cut(0, kept), cut(kept, chunks) if kept < chunks else ids[:0], ids[:0])


def _nanogpt(ids: np.ndarray, settings: Settings) -> Split:
    kept = int(len(ids) * 0.9)
    return Split(ids[:kept], ids[kept:], ids[:0])


def _sizes(ids: np.ndarray, settings: Settings) -> Split:
    """Sizes in ids with units, or percentages without."""
    parts = [SIZE.fullmatch(part) for part in settings.split.split("/")]
    sizes = [Fraction(part[1]) * UNITS[part[2]] for part in parts if part]
    units = {part[2] for part in parts if part}
    percentages = units == {""} and sum(sizes) == 100
    if None in parts or len(parts) not in (2, 3) or ("" in units and not percentages):
        names = ", ".join(SPLITS)
        expected = f"{names}, sizes such as 96M/4M or percentages such as 80/10/10 that add up to 100"
        raise CharLMError(f"--split must be {expected}, got {settings.split!r}")
    if percentages:
        sizes = [size * len(ids) / 100 for size in sizes]
    ends = [int(sum(sizes[: i + 1])) for i in range(len(sizes))]
    if ends[-1] > len(ids):
        raise CharLMError(f"--split {settings.split} needs a text of {ends[-1]:,}, got one of {len(ids):,}")
    train, val, test = (*np.split(ids, ends)[:-1], ids[:0])[:3]
    return Split(train, val, test)


SPLITS = {"contiguous": _contiguous, "charrnn": _charrnn, "nanogpt": _nanogpt}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMG]?)")  # as in 96M, 1.5G, 80
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
