"""Vocabularies: every text comes back from its ids, and what has no id is dealt with as asked."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.vocab import Decoder, Kind, Vocab

TEXT = "aé€😀z\n\x00"


def vocab_of(text: bytes | str, kind: Kind = "bytes") -> Vocab:
    return Corpus.from_bytes("x", text if isinstance(text, bytes) else text.encode(), kind).vocab


def written(decoder: Decoder, ids: np.ndarray) -> str:
    """Text from ids that come one by one."""
    return "".join(decoder.piece([int(id)]) for id in ids) + decoder.end()


def test_symbols_are_bytes_or_characters_in_ascending_order() -> None:
    assert vocab_of(TEXT).symbols == "".join(map(chr, sorted(set(TEXT.encode()))))
    assert vocab_of(TEXT, "chars").symbols == "\x00\nazé€😀"
    assert len(vocab_of(TEXT, "chars")) == 7


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_a_text_comes_back_from_its_ids(kind: Kind) -> None:
    vocab = vocab_of(TEXT, kind)
    ids = vocab.encode(TEXT)
    assert ids.dtype == np.uint8
    assert ids.tolist() == vocab.encode(TEXT.encode()).tolist()
    assert [vocab.symbols[id] for id in ids] == list(
        TEXT if kind == "chars" else TEXT.encode().decode("latin-1")
    )
    assert written(vocab.decoder(), ids) == TEXT
    assert vocab.decoder().piece(ids) == TEXT


def test_any_bytes_come_back_from_their_ids() -> None:
    vocab = vocab_of(bytes(range(256)))
    text = random.Random(0).randbytes(1000)
    assert vocab.encode(text).tolist() == list(text)
    assert vocab.encode(text.decode("utf-8", "surrogateescape")).tolist() == list(text)
    assert written(vocab.decoder(), vocab.encode(text)) == text.decode("utf-8", "replace")


def test_characters_arrive_whole_and_the_end_says_what_is_left() -> None:
    vocab = vocab_of(TEXT)
    decoder = vocab.decoder()
    pieces = [decoder.piece([id]) for id in vocab.encode("€a")]
    assert pieces == ["", "", "€", "a"]
    assert decoder.piece(vocab.encode("€")[:2]) == ""
    assert decoder.end() == "\ufffd"
    assert decoder.end() == ""
    assert decoder.piece(vocab.encode("a")) == "a"


def test_more_than_256_symbols_take_two_bytes_each() -> None:
    for n, dtype in [(256, np.uint8), (257, np.uint16)]:
        text = "".join(map(chr, range(1000, 1000 + n)))
        ids = vocab_of(text, "chars").encode(text)
        assert ids.dtype == dtype
        assert ids.tolist() == list(range(n))


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_unknown_characters_are_named_with_their_places(kind: Kind) -> None:
    vocab = vocab_of("abc", kind)
    with pytest.raises(CharLMError, match=r"got others: 'z' at 1, 'é' at 3, byte 0xff at 4$"):
        vocab.encode(b"az" + "bé".encode() + b"\xffz")
    with pytest.raises(CharLMError, match=r"got others: '\\ud800' at 0$"):
        vocab.encode("\ud800")
    with pytest.raises(CharLMError, match=r"'A' at 0, .* 'J' at 9 and 3 more$"):
        vocab.encode("ABCDEFGHIJKLM")
    assert vocab.encode("").tolist() == []


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_unknown_characters_are_skipped_or_replaced_whole(kind: Kind) -> None:
    for known, replaced in [
        ("ab", None),
        ("ab ", "a b  "),
        ("ab? ", "a?b??"),
        ("ab? \ufffd", "a\ufffdb\ufffd\ufffd"),
    ]:
        vocab = vocab_of(known, kind)
        text = b"a" + "éb€".encode() + b"\xff"
        assert vocab.decoder().piece(vocab.encode(text, "skip")) == "ab"
        if replaced:
            assert vocab.decoder().piece(vocab.encode(text, "replace")) == replaced
        else:
            with pytest.raises(CharLMError, match="no character can stand in"):
                vocab.encode(text, "replace")
        assert vocab.encode("ba", "replace").tolist() == vocab.encode("ba").tolist()


def test_half_a_known_character_is_unknown_as_a_whole() -> None:
    vocab = vocab_of("aé?")
    assert vocab.decoder().piece(vocab.encode("aè", "replace")) == "a?"  # è shares its first byte with é


def test_what_to_do_with_unknown_characters_must_be_known() -> None:
    with pytest.raises(CharLMError, match="--unknown must be error, skip or replace, got 'guess'"):
        vocab_of("ab").encode("a", "guess")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bytes", "chars"])
def test_a_record_is_json_and_comes_back(kind: Kind) -> None:
    vocab = vocab_of(TEXT + "\ud7ff\ue000", kind)
    again = Vocab.from_record(json.loads(json.dumps(vocab.record())))
    assert again == vocab
    assert again.encode(TEXT).tolist() == vocab.encode(TEXT).tolist()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "words", "symbols": "ab"}, "must be bytes or chars, got 'words'"),
        ({"kind": "bytes", "symbols": "ab€"}, "latin-1"),
        ({"kind": "chars", "symbols": "a\ud800"}, "surrogates"),
        ({"kind": "bytes", "symbols": "ba"}, "must ascend"),
        ({"kind": "bytes", "symbols": "aab"}, "must ascend"),
    ],
)
def test_a_record_that_is_none_is_refused(record: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocab.from_record(record)


def test_symbols_are_shown_as_people_read_them() -> None:
    vocab = vocab_of("\naé")
    assert [vocab.shown(i) for i in range(len(vocab))] == [r"'\n'", "'a'", "byte 0xa9", "byte 0xc3"]
    assert vocab_of("\naé", "chars").shown(2) == "'é'"
