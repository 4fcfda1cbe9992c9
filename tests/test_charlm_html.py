"""A page holds what was read, no more and no less; its figures are those that one counts by hand."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from fusedlstm.charlm.activations import Activations, activations
from fusedlstm.charlm.model import CharLM
from fusedlstm.charlm.pages import Page, look, page
from fusedlstm.charlm.pages.choice import WINDOW, excerpt, interest, side_by_side
from fusedlstm.charlm.pages.page import GATES, QUANTITIES, build, glyphs, quantised
from fusedlstm.charlm.pages.summary import braces, buckets, losses, saturation
from fusedlstm.charlm.settings import CharLMError
from fusedlstm.charlm.texts import beginning
from fusedlstm.charlm.vocab import Vocab
from fusedlstm.commands import html as command
from fusedlstm.commands.html import Html

BYTES = Vocab("bytes", "".join(map(chr, range(256))))
PLANTED = (1, 3)  # layer and cell that is on inside brackets
CONTRARY = (1, 5)  # one that is now and then on outside them
ALWAYS = (1, 1)  # one that is on everywhere


def inside_brackets(text: bytes) -> np.ndarray:
    depth = np.cumsum([(c == ord("[")) - (c == ord("]")) for c in text])
    return depth > 0


def synthetic(text: bytes, L: int = 2, H: int = 8) -> Activations:
    """Noise, but for three cells."""
    source, N = np.random.default_rng(0), len(text)
    values = {name: source.uniform(-0.25, 0.25, (N, L, H)).astype(np.float16) for name in QUANTITIES}
    for name in GATES:
        values[name] = source.random((N, L, H)).astype(np.float16)
    values["tanh_c"][:, PLANTED[0], PLANTED[1]] = np.where(inside_brackets(text), 0.9, -0.05)
    values["tanh_c"][:, ALWAYS[0], ALWAYS[1]] = 0.99
    outside = ~inside_brackets(text) & (np.arange(N) % 20 < 10)
    values["tanh_c"][:, CONTRARY[0], CONTRARY[1]] = np.where(outside, 0.95, 0.0)
    likeliest = source.integers(32, 127, (N, 5)).astype(np.uint16)
    likeliest[:-1, 0] = np.frombuffer(text, np.uint8)[1:]
    probabilities = np.sort(source.dirichlet(np.ones(6), N)[:, :5].astype(np.float32))[:, ::-1]
    bits = source.exponential(2, N).astype(np.float32)
    bits[0] = np.nan
    state = (torch.zeros(L, 1, H), torch.zeros(L, 1, H))
    return Activations(values, tuple(range(L)), likeliest, probabilities, bits, state, before=state)


def synthetic_page(text: bytes, run: Path | None = None, **options: object) -> tuple[Page, Activations]:
    made = synthetic(text)
    labels = {"brackets": inside_brackets(text)}
    return build(made, np.frombuffer(text, np.uint8), BYTES, labels, run=run, **options), made  # type: ignore[arg-type]


def sentence(n: int) -> bytes:
    return (b"one [two three] four\n\tfive {six [seven]} 8; " * (n // 40 + 1))[:n]


class Scripts(HTMLParser):
    """The scripts of a page by id, and whatever could fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str | None, str]] = []
        self.within = False
        self.links: list[str] = []
        self.headings = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        self.within = tag == "script"
        if self.within:
            self.found.append((dict(attrs).get("id"), ""))

    def handle_endtag(self, tag: str) -> None:
        self.within = False

    def handle_data(self, data: str) -> None:
        if self.within:
            name, before = self.found[-1]
            self.found[-1] = name, before + data
        else:
            self.headings += data


# What is on a page


def test_a_page_holds_facts_and_arrays_as_they_are() -> None:
    made, _ = synthetic_page(sentence(500))
    scripts = dict(Scripts(made.html()).found)
    assert json.loads(scripts["facts"]) == json.loads(json.dumps(made.facts))
    for name, array in made.arrays.items():
        raw = base64.b64decode(scripts[f"array-{name}"], validate=True)
        np.testing.assert_array_equal(np.frombuffer(raw, array.dtype), array.ravel(), name)
    assert len(scripts) == 2 + len(made.arrays)


def test_activations_keep_their_cell_and_place() -> None:
    made, read = synthetic_page(sentence(300))
    for name in QUANTITIES:
        for layer in range(2):
            array = made.arrays[f"{name}-{layer}"]
            assert array.dtype == np.int8 and array.shape == (8, 300)
            error = np.abs(array.T / 127 - read.values[name][:, layer].astype(np.float64)).max()
            assert error <= 0.5 / 127 + 1e-9
    np.testing.assert_array_equal(made.arrays["bits"], read.bits)
    np.testing.assert_allclose(made.arrays["probabilities"] / 65535, read.probabilities, atol=1e-5)


def test_beyond_one_is_one() -> None:
    np.testing.assert_array_equal(quantised(np.array([[1.5, -7.0]])), [[127], [-127]])


def test_text_with_markup_stays_text(tmp_path: Path) -> None:
    text = b"</script><script>alert(1)</script><!--<b>&amp; [in] " * 8
    run = tmp_path / "<i>run"
    (run / "samples").mkdir(parents=True)
    (run / "samples" / "step-00000001.txt").write_text("</script><img src=x>")
    made, _ = synthetic_page(text, run)
    parsed = Scripts(made.html())
    assert [name for name, _ in parsed.found] == ["facts", *(f"array-{name}" for name in made.arrays), None]
    assert json.loads(parsed.found[0][1])["text"] == text.decode()
    assert "What the cells of <i>run do" in parsed.headings


def test_a_page_needs_no_network() -> None:
    text = synthetic_page(sentence(100))[0].html()
    assert Scripts(text).links == ["data:,"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|import\(", text)
    assert set(re.findall(r"https?://[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    made, _ = synthetic_page(b"<b>[\"quoted'] & so on</b>" * 20)
    frame: dict[str, str | None] = {}
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: frame.update(attrs)  # type: ignore[method-assign]
    parser.feed(made._repr_html_())
    assert frame["srcdoc"] == made.html()


def test_a_character_is_where_its_last_byte_is() -> None:
    text = "aé\n€".encode() + b"\xe4b"
    assert glyphs(BYTES, np.frombuffer(text, np.uint8)) == "a\u00b7é\n\u00b7\u00b7€\u00b7b"


def test_samples_and_losses_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for step, text in ((200, "later"), (100, "soon")):
        (tmp_path / "samples" / f"step-{step:08}.txt").write_text(text)
    lines = [{"step": 1, "train": np.log(2)}, {"step": 2, "train": None}, {"step": 3, "val": np.log(4)}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = synthetic_page(sentence(60), tmp_path)[0].facts
    assert facts["samples"] == [{"step": 100, "text": "soon"}, {"step": 200, "text": "later"}]
    assert facts["curve"] == [{"step": 1, "train": 1.0}, {"step": 3, "val": 2.0}]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_short_texts_have_pages(n: int) -> None:
    made, _ = synthetic_page(b"a[b]\n}{"[:n])
    assert made.facts["characters"] == n and json.loads(dict(Scripts(made.html()).found)["facts"])


# Which cells


def test_the_most_interesting_cells_are_kept() -> None:
    made, read = synthetic_page(sentence(2000), kept=2)
    assert made.facts["layers"][1].count(PLANTED[1]) == 1
    for layer, cells in enumerate(made.facts["layers"]):
        assert len(cells) == 2 and cells == sorted(cells)
        for k, cell in enumerate(cells):
            np.testing.assert_array_equal(
                made.arrays[f"h-{layer}"][k], quantised(read.values["h"][:, layer, cell : cell + 1])[0]
            )
    first = made.facts["interesting"][0]
    assert (first["layer"], first["cell"], first["label"]) == (*PLANTED, "brackets")
    assert first["figure"] == pytest.approx(1.0) and not first["low"]
    low = {(cell["layer"], cell["cell"]): cell["low"] for cell in made.facts["interesting"]}
    assert low[CONTRARY]
    for cell in made.facts["interesting"]:
        assert cell["cell"] in made.facts["layers"][cell["layer"]]


def test_cells_side_by_side_differ() -> None:
    source = np.random.default_rng(0)
    one, two = source.random(3000) < 0.3, source.random(3000) < 0.1
    noise = source.normal(size=(3000, 6))
    values = noise + np.stack([9 * one, 9 * one, 9 * one, 2 * two, 0 * one, 0 * one], 1)
    found = interest(values, {"one": one, "two": two, "never": np.zeros(3000, bool)})
    assert set(found.label) == {"one", "two"}
    chosen = side_by_side(found, np.arange(6))
    assert chosen[0] in (0, 1, 2) and chosen[1] == 3 and sorted(chosen) == list(range(6))
    assert 3 not in side_by_side(found, np.array([0, 1, 5]))


def test_without_labels_the_cells_that_change_most_come_first() -> None:
    values = np.random.default_rng(0).normal(size=(500, 3)) * [1, 3, 2]
    assert interest(values, {}).order().tolist() == [1, 2, 0]


def test_the_excerpt_is_where_a_cell_changes() -> None:
    values = np.zeros(10 * WINDOW)
    values[4 * WINDOW : 5 * WINDOW : 2] = 1
    assert excerpt(values) == 4 * WINDOW
    assert excerpt(values[:10]) == 0


# What the reading comes to


def test_braces_are_matched_from_within() -> None:
    codes = np.frombuffer(b"}a{b{c}}d{", np.uint8)
    assert braces(codes).tolist() == [[4, 6], [2, 7]]
    assert braces(codes[:1]).shape == (0, 2)


def test_buckets_double() -> None:
    rows = buckets(np.array([1, 2, 3, 3, 9]), np.array([1.0, 2.0, 4.0, 6.0, 5.0]))
    assert rows == [
        {"name": "1", "mean": 1.0, "count": 1},
        {"name": "2 to 3", "mean": 4.0, "count": 3},
        {"name": "8 to 15", "mean": 5.0, "count": 1},
    ]


def test_losses_by_hand() -> None:
    text, bits = b"x{ab}\nB1 \xc3", np.array([np.nan, 1, 2, 3, 4, 5, 6, 7, 8, 9], np.float32)
    found = losses(np.frombuffer(text, np.uint8), bits)
    means = {table: {row["name"]: row["mean"] for row in rows} for table, rows in found.items()}
    assert means["by_class"] == {
        "bracket": 2.5, "small letter": 2.5, "new line": 5, "capital letter": 6, "digit": 7, "blank": 8,
        "beyond ASCII": 9,
    }  # fmt: skip
    # In their lines { a b } and the new line are 2 to 6, then come 1 to 4.
    assert means["by_line"] == {"1": 6, "2 to 3": (1 + 2 + 7 + 8) / 4, "4 to 7": (3 + 4 + 5 + 9) / 4}
    assert means["by_word"] == {"1": (2 + 6 + 9) / 3, "2 to 3": 3}
    assert means["by_text"] == {"1": 1, "2 to 3": 2.5, "4 to 7": 5.5, "8 to 15": 8.5}
    assert means["brace"] == {"2 to 3": 2.0**-4}


def test_saturation_counts_the_time_at_either_end() -> None:
    gate = np.zeros((4, 2, 1))
    gate[:, 0, 0], gate[:, 1, 0] = [0.05, 0.5, 0.95, 0.99], [0.1, 0.9, 0.0, 0.2]
    rows = saturation({"f": gate, "o": 1 - gate})
    assert [(row["layer"], row["gate"]) for row in rows] == [(0, "f"), (0, "o"), (1, "f"), (1, "o")]
    assert rows[0]["left"] == [0.25] and rows[0]["right"] == [0.5]
    assert rows[1]["left"] == [0.5] and rows[1]["right"] == [0.25]
    assert rows[2]["left"] == [0.25] and rows[2]["right"] == [0.0]


# From a model


@pytest.fixture
def model() -> CharLM:
    return CharLM(256, 6, 2).eval()


def test_a_look_is_what_the_model_did(model: CharLM) -> None:
    text = sentence(400)
    made = look(model, BYTES, text)
    read = activations(model, np.frombuffer(text, np.uint8), QUANTITIES)
    for name in QUANTITIES:
        np.testing.assert_array_equal(made.arrays[f"{name}-1"], quantised(read.values[name][:, 1]))
    np.testing.assert_array_equal(made.arrays["likeliest"], read.likeliest)
    assert made.facts["bits"] == pytest.approx(float(np.nanmean(read.bits)))
    assert made.facts["left_out"] == []


def test_characters_are_labelled_by_their_last_byte() -> None:
    text = "é[ä]" * 40
    vocab = Vocab("chars", "".join(sorted(set(text))))
    made = look(CharLM(len(vocab), 4, 1).eval(), vocab, text.encode())
    assert made.facts["text"] == text and made.facts["characters"] == len(text)


def test_a_long_text_keeps_less_and_says_so(model: CharLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHORT", 400 * 12 - 1)
    monkeypatch.setattr(page, "CELLS", 5)
    monkeypatch.setattr(page, "BUDGET", 400 * 10 * 2)
    facts = look(model, BYTES, sentence(400)).facts
    assert [len(cells) for cells in facts["layers"]] == [5, 5]
    assert facts["quantities"] == ["tanh_c", "h"] and facts["left_out"] == ["f", "i", "o", "g"]
    assert len(look(model, BYTES, sentence(399)).facts["layers"][0]) == 6
    assert look(model, BYTES, sentence(4001)).facts["quantities"] == ["tanh_c"]
    assert [len(cells) for cells in look(model, BYTES, sentence(400), cells=3).facts["layers"]] == [3, 3]


def test_the_command_writes_a_file(
    model: CharLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "load_model", lambda run: (model, BYTES))
    (tmp_path / "text").write_bytes(sentence(300))
    args = [str(tmp_path), str(tmp_path / "text"), "--out", str(tmp_path / "a.html"), "--characters", "120"]
    tyro.cli(Html, args=[*args, "--cells", "2"])()
    facts = json.loads(dict(Scripts((tmp_path / "a.html").read_text("utf-8")).found)["facts"])
    assert facts["characters"] == 120 and [len(cells) for cells in facts["layers"]] == [2, 2]
    assert "a.html: 0." in capsys.readouterr().out


def test_the_beginning_of_a_text_is_counted_in_characters(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("äöü€", "utf-8")
    assert beginning(str(tmp_path / "text"), 3, "chars").decode() == "äöü"
    assert beginning(str(tmp_path / "text"), 3, "bytes") == "äö".encode()[:3]


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    with pytest.raises(CharLMError, match="--characters must be at least 1"):
        Html("run", "text", characters=0)
    with pytest.raises(CharLMError, match="--cells must be at least 1, got 0"):
        Html("run", "text", cells=0)
    with pytest.raises(CharLMError, match=r"cannot read .*none: No such file"):
        beginning(str(tmp_path / "none"), 3, "bytes")
    (tmp_path / "latin").write_bytes(b"\xe4\xe4")
    with pytest.raises(CharLMError, match="latin must be UTF-8"):
        beginning(str(tmp_path / "latin"), 3, "chars")
    with pytest.raises(CharLMError, match=r"cannot write .*: No such file"):
        synthetic_page(sentence(50))[0].save(tmp_path / "no" / "a.html")
