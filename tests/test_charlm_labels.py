"""Labels against strings marked by hand, and second implementations that read one character at a time."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusedlstm.charlm import labels
from fusedlstm.charlm.labels import LABELS, at_characters, chosen, inside, since, tracks
from fusedlstm.charlm.settings import CharLMError

# A text, and under it the label after each of its characters: x for true, . for false, or one digit.
BY_HAND = [
    ("line_position", "ab\n\nc", "12001"),
    ("newline_next", "ab\n\nc\n", ".xx.x."),
    ("word_start", "a bC, 9d\n", "x.x....x."),
    ("word_position", "abc, 9d'e\n", "1230001010"),
    ("uppercase", "aB [Z@", ".x..x."),
    ("digit", "a09:/", ".xx.."),
    ("indentation", "  a b\n\tc\n c\nd", "1222208801100"),
    ("indentation", " \tx", "188"),
    ("bracket_depth", ")a([{}])(", "001232101"),
    ("quotes", 'a "b" "', "..xx..x"),
    ("quotes", '"a\n b\n \n"c"', "xxxxxxx.xx."),
    ("url", "at http://a.b/c?d, e", ".........xxxxxxxxx.."),
    ("url", "www.a.b> xwww.c www", "...xxxx............"),
    ("www", "a www. wwow", "00123001201"),
    ("wiki_link", "[[a|b]] [c] x]] [[", ".xxxxx...........x"),
    ("wiki_depth", "[[a [[b]] c]] ]]", "0111122211110000"),
    ("wiki_depth", "[[a\n \nb]]", "011110000"),
    ("c_comment", "a/*b*/c//d\\\ne\nf/", "..xxx...xxxxx..."),
    ("c_comment", '"/*" /**/ \'"\' // "', "......xx.......xxx"),
    ("c_comment", "/*/ */", ".xxxx."),
    ("c_string", r'"a\"b" "c', "xxxxx..xx"),
    ("c_string", '\'"\' "\'" /* " */ "x";', "....xx..........xx.."),
    ("c_string", '#error don\'t\nx = "a";', ".................xx.."),
    ("c_string", '#include <it\'s>\n"a"', "................xx."),
    ("c_string", '"ab\nc"d"', "xxx..xx."),
    ("c_string", '"ab\\\nc"d', "xxxxxx.."),
    ("c_preprocessor", "a\n #if b\nc # d\n", "...xxxxx......."),
    ("c_preprocessor", "#define a \\\nb\nc", "xxxxxxxxxxxxx.."),
    ("c_preprocessor", "#a /* \n */ b\nc", "xxxxxxxxxxxx.."),
    ("c_preprocessor", '"a" # b', "......."),
    ("c_if", "if (a(b)) c; gif (d)", "...xxxxx............"),
    ("c_if", "f(if(x)y)", "....xx..."),
    ("c_if", "#if (a)\n/* if ( */ if\n(", "......................x"),
    ("c_parentheses", "f(a[0], \"(\", ')')", "01122111111111110"),
    ("c_braces", "{ /* { */ '{' \"{\" }\n#define a {\n", "11111111111111111100000000000000"),
    ("latex_depth", r"\begin{a}\begin{b}c\end{b}", "00000000111111111222222221"),
    ("latex_environment", "\\\\begin{a} %\\begin{b}\n\\begin{c*}d", "...............................xx"),
    ("latex_math", r"a $b$ \$c", "..xx....."),
    ("latex_math", r"$a$$b$ $$c$$", "xx.xx..xxxx."),
    ("latex_math", r"\(a\) \[b\]", ".xxx...xxx."),
    ("latex_math", "$a\n\nb$", "xxx..x"),
]


@pytest.mark.parametrize(("name", "text", "marks"), BY_HAND)
def test_labels_by_hand(name: str, text: str, marks: str) -> None:
    values = tracks({name: LABELS[name].rule}, text.encode())[name]
    shown = ["x" if v else "." for v in values] if values.dtype == bool else [f"{int(v)}" for v in values]
    assert "".join(shown) == marks, text


def test_every_label_has_an_example_and_is_what_the_table_says() -> None:
    assert {name for name, _, _ in BY_HAND} == set(LABELS)
    for name, label in LABELS.items():
        values = label.rule(b"some text")
        assert values.dtype == (bool if label.kind == "binary" else np.float32), name
        assert label.rule(b"").shape == (0,), name
        assert label.rule.__doc__, name


# The same once more, one character at a time.


def c_by_hand(text: str) -> tuple[list[str], list[bool], str]:
    """The state after each character of C, whether it is in a # line, and the code, all else blanked."""
    states: list[str] = []
    state, slash, star, escaped = "code", False, False, False
    for n, ch in enumerate(text):
        after = text[n + 1 : n + 2]
        if state == "line":
            spliced = text[n - 1] == "\\" or text[n - 2 : n] == "\\\r"
            state = "code" if ch == "\n" and not spliced else state
        elif state == "block":
            state = "code" if star and ch == "/" else state
            star = ch == "*"
        elif state in ("string", "character"):
            if escaped:
                escaped = ch == "\r" and after == "\n"
            elif ch == "\\":
                escaped = True
            elif ch == "\n" or ch == {"string": '"', "character": "'"}[state]:
                state = "code"
        elif state == "message":
            if ch == "\n":
                state = "code"
            elif ch == "/" and after and after in "/*":
                state, slash = "code", True
        elif state == "header":
            state = "code" if ch == ">" else state
        elif slash and ch in "*/":
            state, slash, star = ("block" if ch == "*" else "line"), False, False
        else:
            slash = ch == "/"
            rest = text[n + 1 :].lstrip(" \t").partition("\n")[0]
            if ch in "\"'":
                state = {'"': "string", "'": "character"}[ch]
            elif ch == "#" and not text[:n].rpartition("\n")[2].strip(" \t"):
                if any(rest.startswith(w) and not rest[len(w) :][:1].isalnum() for w in ("error", "warning")):
                    state = "message"
                elif rest.startswith("include") and rest[7:].lstrip(" \t")[:1] == "<" and ">" in rest:
                    state = "header"
        states.append(state)

    directive, code = [], ""
    fresh, within = True, False
    for n, ch in enumerate(text):
        before, now, after = (states[k] if 0 <= k < len(text) else "code" for k in (n - 1, n, n + 1))
        opens = after in ("block", "line") and now not in ("block", "line") and ch == "/"
        literal = ("string", "character")
        if now in ("block", "line") or opens or (before == "block" and now != "block"):
            code += " "
        elif now in literal or (before in literal and ch != "\n"):
            code += '"'
            fresh = False
        else:
            code += ch
            if ch == "\n":
                within = within and (code[-2:-1] == "\\" or code[-3:-1] == "\\\r")
                fresh = not within
            elif ch == "#" and fresh:
                within, fresh = True, False
            elif ch not in " \t":
                fresh = False
        directive.append(within)
    return states, directive, "".join(" " if d else c for c, d in zip(code, directive, strict=True))


def c_comment(text: str) -> list[float]:
    return [state in ("block", "line") for state in c_by_hand(text)[0]]


def c_string(text: str) -> list[float]:
    return [state == "string" for state in c_by_hand(text)[0]]


def c_preprocessor(text: str) -> list[float]:
    return c_by_hand(text)[1]


def c_if(text: str) -> list[float]:
    code = c_by_hand(text)[2]
    values = [False] * len(text)
    for p in range(len(code)):
        word = code[:p].rstrip(" \t\r\n")
        if code[p] == "(" and word.endswith("if") and not (word[-3:-2].isalnum() or word[-3:-2] == "_"):
            depth = 0
            for n in range(p, len(code)):
                depth += {"(": 1, ")": -1}.get(code[n], 0)
                if not depth:
                    break
                values[n] = True
    return values


def depth(opening: str, closing: str) -> Callable[[str], list[float]]:
    def rule(text: str) -> list[float]:
        values, now = [], 0
        for ch in text:
            now = now + 1 if ch in opening else max(now - 1, 0) if ch in closing else now
            values.append(now)
        return values

    return rule


def quotes(text: str) -> list[float]:
    values, now = [], False
    for n, ch in enumerate(text):
        line = text[:n].rpartition("\n")
        if ch == '"':
            now = not now
        elif ch == "\n" and line[1] and not line[2].strip(" \t"):
            now = False
        values.append(now)
    return values


def wiki_depth(text: str) -> list[float]:
    values, now, n = [0.0] * len(text), 0.0, 0
    while n < len(text):
        token, after = text[n : n + 2], now
        blank = text[n + 1 :].lstrip(" \t")
        if token in ("[[", "]]"):
            length, after = 2, now + 1 if token == "[[" else max(now - 1, 0)
        elif text[n] == "\n" and blank[:1] == "\n":
            length, after = len(text) - n - len(blank) + 1, 0
        else:
            length = 1
        values[n : n + length] = [now] * (length - 1) + [after]
        now, n = after, n + length
    return values


def indentation(text: str) -> list[float]:
    values, columns, leading = [], 0, True
    for ch in text:
        if ch == "\n":
            columns, leading = 0, True
        elif ch in " \t" and leading:
            columns = columns + 1 if ch == " " else (columns // 8 + 1) * 8
        else:
            leading = False
        values.append(columns)
    return values


def latex_code(text: str) -> str:
    made, n = "", 0
    while n < len(text):
        length = 1
        if text[n : n + 2] in ("\\\\", "\\$", "\\%"):
            length = 2
        elif text[n] == "%":
            length = len(text[n:].partition("\n")[0])
        else:
            made += text[n]
        made = made.ljust(n + length)
        n += length
    return made


def latex_depth(text: str) -> list[float]:
    code, values, now = latex_code(text), [], 0
    for n, ch in enumerate(code):
        command, _, name = code[:n].rpartition("{")
        if ch == "}" and not set("}\n") & set(name):
            now += command.endswith("\\begin")
            now = max(now - command.endswith("\\end"), 0)
        values.append(now)
    return values


def latex_math(text: str) -> list[float]:
    code, values, n = latex_code(text), [False] * len(text), 0

    def mark(start: int, end: int, after: int) -> int:
        values[start:end] = [True] * (end - start)
        return after

    while n < len(code):
        pair, end = code[n : n + 2], code.find("$", n + 2)
        closing = {"\\(": "\\)", "\\[": "\\]"}.get(pair, "")
        if pair == "$$" and end >= 0 and code[end : end + 2] == "$$":
            n = mark(n, end + 1, end + 2)
        elif code[n] == "$":
            end = n + 1
            while end < len(code) and code[end] != "$":
                blank = code[end + 1 :].lstrip(" \t")
                if code[end] == "\n" and blank[:1] == "\n":
                    end = len(code) - len(blank)
                    break
                end += 1
            n = mark(n, end, end + (code[end : end + 1] == "$"))
        elif closing and code.find(closing, n + 2) >= 0:
            end = code.find(closing, n + 2)
            n = mark(n + 1, end + 1, end + 2)
        else:
            n += 1
    return values


C_PIECES = [
    "/*", "*/", "//", "/", "*", '"', "'", "\\", "\\\n", "\\\r\n", "\n", "\n#", "#", "\n#error ",
    "\n # warning", "\n#include <", ">", "a", " ", "\t", "(", ")", "[", "]", "{", "}", "if", "if (",
    "else if(", "\n#define a {\\\n",
]  # fmt: skip
LATEX_PIECES = [
    r"\begin{a}", r"\end{a}", r"\begin{", r"\end{", "}", "{", "%", "\\", r"\%", r"\$", "$", "$$", r"\(",
    r"\)", r"\[", r"\]", "\n", "\n \n", " ", "a",
]  # fmt: skip
PROSE_PIECES = ['"', "\n", "\n \t\n", " ", "\t", "a", "[[", "]]", "[", "]", "(", ")", "{", "}"]
BRACKETS = depth("([", ")]")
SECOND: dict[str, tuple[Callable[[str], list[float]], list[str]]] = {
    "c_comment": (c_comment, C_PIECES),
    "c_string": (c_string, C_PIECES),
    "c_preprocessor": (c_preprocessor, C_PIECES),
    "c_if": (c_if, C_PIECES),
    "c_parentheses": (lambda text: BRACKETS(c_by_hand(text)[2]), C_PIECES),
    "c_braces": (lambda text: depth("{", "}")(c_by_hand(text)[2]), C_PIECES),
    "latex_depth": (latex_depth, LATEX_PIECES),
    "latex_math": (latex_math, LATEX_PIECES),
    "quotes": (quotes, PROSE_PIECES),
    "wiki_depth": (wiki_depth, PROSE_PIECES),
    "bracket_depth": (depth("([{", ")]}"), PROSE_PIECES),
    "indentation": (indentation, PROSE_PIECES),
}


@pytest.mark.parametrize("name", SECOND)
def test_labels_against_a_second_implementation(name: str) -> None:
    second, pieces = SECOND[name]
    source, held = random.Random(0), 0
    for _ in range(1500):
        text = "".join(source.choices(pieces, k=source.randint(1, 25)))
        values = LABELS[name].rule(text.encode())
        np.testing.assert_array_equal(values, second(text), err_msg=repr(text))
        held += bool(values.any())
    assert held > 100  # the texts ask something


def test_a_long_text_without_ends_is_read_through() -> None:
    text = b'"' + b"(" * 100_000 + b"a\n" * 50_000 + b"/*" + b"$" * 50_001
    for label in LABELS.values():
        assert len(label.rule(text)) == len(text)


def test_kinds_of_text_stand_for_their_labels() -> None:
    assert set(chosen()) == set(LABELS)
    assert set(chosen(["wiki", "digit"])) == {"wiki_link", "wiki_depth", "digit"}
    with pytest.raises(
        CharLMError, match=r"--labels must be some of line_position, .*, wiki, got 'nonsense'"
    ):
        chosen(["nonsense"])


def test_a_regular_expression_is_a_label() -> None:
    rules = chosen(regexes=["tag=<(b+)>", "odd=[13579]"])
    found = tracks(rules, b"1<bb><>2")
    assert found["odd"].tolist() == [True] + [False] * 7
    assert found["tag"].tolist() == [False, False, True, True, False, False, False, False]
    for wrong, message in [
        ("tag", "NAME=PATTERN"),
        ("tag=(", "no regular expression: "),
        ("=a", "NAME=PATTERN"),
    ]:
        with pytest.raises(CharLMError, match=message):
            chosen(regexes=[wrong])
    with pytest.raises(CharLMError, match="two called 'digit'"):
        chosen(["digit"], ["digit=[0-9]"])


def test_a_function_is_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_labels.py").write_text(
        "def length(text):\n    return list(range(len(text)))\n"
        "def short(text):\n    return [True]\n"
        "def wild(text):\n    return [float('nan')] * len(text)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])  # which chosen adds to
    values = tracks(chosen(functions=["my_labels:length"]), b"abc")["length"]
    assert values.tolist() == [0, 1, 2]
    assert values.dtype == np.float32
    for wrong, message in [
        ("my_labels:short", r"label short must be an array \[3\] of bool or numbers, got \[1\] of bool"),
        ("my_labels:wild", "label wild must be finite, got nan"),
        ("my_labels:missing", "cannot import my_labels:missing: "),
        ("no_such_module:a", "cannot import no_such_module:a: "),
        ("my_labels", "MODULE:FUNCTION"),
    ]:
        with pytest.raises(CharLMError, match=message):
            tracks(chosen(functions=[wrong]), b"abc")


def test_labels_of_characters_are_those_of_their_last_bytes() -> None:
    text = "aé€😀\n"
    values = np.arange(len(text.encode()))
    assert at_characters(values, text.encode()).tolist() == [0, 2, 5, 9, 10]


def test_since_counts_from_the_last_true() -> None:
    assert since(np.array([False, False, True, False, True, True])).tolist() == [1, 2, 0, 1, 0, 0]
    assert since(np.zeros(0, bool)).tolist() == []


def test_inside_takes_the_group_that_took_part() -> None:
    assert inside(rb"a(b)|c(d)|e", b"abcde").tolist() == [False, True, False, True, True]


def test_the_automaton_of_c_runs_once_for_all_labels_of_a_text() -> None:
    labels._c.cache_clear()
    tracks(chosen(["c"]), b"int a; /* b */\n")
    assert labels._c.cache_info().misses == 1
