"""Labels: what holds at each place of a text, worked out from its bytes by exact rules.

The label of byte n is what holds once the text has been read up to and including n: inside quotes from the
opening quote on, no longer so from the closing one on. Text that no rule foresees (an #ifdef that opens a
bracket twice) is read as it stands.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from fusedlstm.charlm.settings import CharLMError

Rule = Callable[[bytes], np.ndarray]
TAB = 8  # columns
BLANK_LINE = rb"\n[ \t]*(?=\n)"  # as far as it is known before its end


def line_position(text: bytes) -> np.ndarray:
    """Characters since the line began."""
    return since(_bytes(text) == ord("\n"))


def newline_next(text: bytes) -> np.ndarray:
    """The next character ends the line."""
    return np.append(_bytes(text) == ord("\n"), False)[1:]


def word_start(text: bytes) -> np.ndarray:
    """The first letter of a word."""
    return word_position(text) == 1


def word_position(text: bytes) -> np.ndarray:
    """Letters of the word so far; bytes beyond ASCII are taken for letters."""
    codes = _bytes(text)
    lower = codes | 0x20
    return since(~(((lower >= ord("a")) & (lower <= ord("z"))) | (codes >= 0x80)))


def uppercase(text: bytes) -> np.ndarray:
    """A capital letter of ASCII."""
    return (_bytes(text) >= ord("A")) & (_bytes(text) <= ord("Z"))


def digit(text: bytes) -> np.ndarray:
    """A digit."""
    return (_bytes(text) >= ord("0")) & (_bytes(text) <= ord("9"))


def indentation(text: bytes) -> np.ndarray:
    """Columns of blanks at the beginning of the line, as far as it has been read."""
    values = np.zeros(len(text), np.float32)
    for match in re.finditer(rb"([ \t]+)[^\n]*", text):
        if match.start() == 0 or text[match.start() - 1] == ord("\n"):
            columns = 0
            for n in range(*match.span(1)):
                columns += TAB - columns % TAB if text[n] == ord("\t") else 1
                values[n] = columns
            values[match.end(1) : match.end()] = columns
    return values


def bracket_depth(text: bytes) -> np.ndarray:
    """Brackets of all kinds that are open: ( [ {."""
    return _depth(rb"(?P<open>[(\[{])|(?P<close>[)\]}])", text)


def quotes(text: bytes) -> np.ndarray:
    """Inside straight double quotes, which a blank line ends."""
    return inside(rb'("(?:[^"\n]|\n(?![ \t]*\n))*(?:' + BLANK_LINE + rb')?)"?', text)


def url(text: bytes) -> np.ndarray:
    """Inside an address, from http:// or www. on."""
    return inside(rb"""(?:https?:/(?=/)|\bwww(?=\.))([/.][^\s<>"{}|\\^\[\]`]*)""", text)


def www(text: bytes) -> np.ndarray:
    """How many w the text has just had in a row."""
    return since(_bytes(text) != ord("w"))


def wiki_depth(text: bytes) -> np.ndarray:
    """Wiki links [[ that are open, one inside the other; a blank line ends them."""
    return _depth(rb"(?P<open>\[\[)|(?P<close>\]\])|\n[ \t]*\n", text)


def wiki_link(text: bytes) -> np.ndarray:
    """Inside a wiki link, [[ to ]]."""
    return wiki_depth(text) > 0


def c_comment(text: bytes) -> np.ndarray:
    """Inside a comment of C, /* */ or //."""
    return _c(text)[0]["comment"]


def c_string(text: bytes) -> np.ndarray:
    """Inside a string literal of C."""
    return _c(text)[0]["string"]


def c_preprocessor(text: bytes) -> np.ndarray:
    """In a line for the preprocessor of C, from its # on."""
    return _c(text)[0]["preprocessor"]


def c_if(text: bytes) -> np.ndarray:
    """Inside the condition of an if of C, from its bracket on."""
    values = np.zeros(len(text), bool)
    opened: list[tuple[int, bool]] = []  # where, and whether after an if
    code = _c(text)[1]
    for match in re.finditer(rb"(\bif\s*)?\(|\)", code):
        if match[0] != b")":
            opened.append((match.end() - 1, match[1] is not None))
        elif opened:
            start, condition = opened.pop()
            if condition:
                values[start : match.start()] = True
    for start, condition in opened:
        if condition:
            values[start:] = True
    return values


def c_parentheses(text: bytes) -> np.ndarray:
    """Parentheses ( and [ that are open in the code of C: not those in comments, literals and # lines."""
    return _depth(rb"(?P<open>[(\[])|(?P<close>[)\]])", _c(text)[1])


def c_braces(text: bytes) -> np.ndarray:
    """Braces { that are open in the code of C."""
    return _depth(rb"(?P<open>\{)|(?P<close>\})", _c(text)[1])


def latex_depth(text: bytes) -> np.ndarray:
    r"""Environments of LaTeX that are open, \begin to \end."""
    tokens = rb"(?P<open>\\begin\{[^{}\n]*\})|(?P<close>\\end\{[^{}\n]*\})"
    return _depth(tokens, _latex(text))


def latex_environment(text: bytes) -> np.ndarray:
    """Inside an environment of LaTeX."""
    return latex_depth(text) > 0


def latex_math(text: bytes) -> np.ndarray:
    r"""Inside mathematics of LaTeX: $ $ (which a blank line ends), $$ $$, \( \), \[ \]."""
    inline = rb"(\$(?:[^$\n]|\n(?![ \t]*\n))*(?:" + BLANK_LINE + rb")?)\$?"
    rest = rb"\\(?=\()(\(.*?\\)\)|\\(?=\[)(\[.*?\\)\]"
    return inside(rb"(?s)(\$\$[^$]*\$)\$|" + inline + rb"|" + rest, _latex(text))


@dataclass(frozen=True)
class Label:
    """A rule in the table: what its values are (bool, or float32), how to get them, and for which texts."""

    kind: Literal["binary", "scalar"]
    rule: Rule
    suits: str


LABELS: dict[str, Label] = {
    "line_position": Label("scalar", line_position, "any"),
    "newline_next": Label("binary", newline_next, "any"),
    "word_start": Label("binary", word_start, "any"),
    "word_position": Label("scalar", word_position, "any"),
    "uppercase": Label("binary", uppercase, "any"),
    "digit": Label("binary", digit, "any"),
    "indentation": Label("scalar", indentation, "any"),
    "bracket_depth": Label("scalar", bracket_depth, "any"),
    "quotes": Label("binary", quotes, "prose"),
    "url": Label("binary", url, "any"),
    "www": Label("scalar", www, "any"),
    "wiki_link": Label("binary", wiki_link, "wiki"),
    "wiki_depth": Label("scalar", wiki_depth, "wiki"),
    "c_comment": Label("binary", c_comment, "c"),
    "c_string": Label("binary", c_string, "c"),
    "c_preprocessor": Label("binary", c_preprocessor, "c"),
    "c_if": Label("binary", c_if, "c"),
    "c_parentheses": Label("scalar", c_parentheses, "c"),
    "c_braces": Label("scalar", c_braces, "c"),
    "latex_environment": Label("binary", latex_environment, "latex"),
    "latex_depth": Label("scalar", latex_depth, "latex"),
    "latex_math": Label("binary", latex_math, "latex"),
}


def chosen(
    names: Sequence[str] = (), regexes: Sequence[str] = (), functions: Sequence[str] = ()
) -> dict[str, Rule]:
    """The rules that a user asks for, by name.

    Args:
        names: in LABELS, or kinds of text that stand for all that suit them (any, prose, c, wiki, latex);
            without any names, regexes and functions all of LABELS.
        regexes: NAME=PATTERN, of bytes: inside a match, or inside the group if the pattern has one.
        functions: MODULE:FUNCTION, given the text as bytes, returns an array [n] of bool or numbers.

    Raises:
        CharLMError: when a name, pattern or function does not serve, or two have one name.
    """
    kinds = {label.suits for label in LABELS.values()}
    found: dict[str, Rule] = {}
    for name in names or (() if regexes or functions else sorted(kinds)):
        if name not in LABELS and name not in kinds:
            choices = ", ".join((*LABELS, *sorted(kinds)))
            raise CharLMError(f"--labels must be some of {choices}, got {name!r}")
        found |= {n: label.rule for n, label in LABELS.items() if name in (n, label.suits)}
    for name, rule in (*map(_from_regex, regexes), *map(_from_function, functions)):
        if name in found:
            raise CharLMError(f"labels must have names of their own, got two called {name!r}")
        found[name] = rule
    return found


def tracks(rules: Mapping[str, Rule], text: bytes) -> dict[str, np.ndarray]:
    """The labels of a text, each bool or float32 [n].

    Raises:
        CharLMError: when a rule gives no such array.
    """
    return {name: _checked(name, rule(text), len(text)) for name, rule in rules.items()}


def at_characters(values: np.ndarray, text: bytes) -> np.ndarray:
    """The labels of a UTF-8 text's characters, from those of its bytes: a character's is its last byte's."""
    return values[np.append(_bytes(text)[1:] & 0xC0 != 0x80, True)]


def since(starts: np.ndarray) -> np.ndarray:
    """How long ago the last True was, 0 where it is; before the first, how much of the array has passed."""
    positions = np.arange(len(starts))
    return (positions - np.maximum.accumulate(np.where(starts, positions, -1))).astype(np.float32)


def inside(pattern: bytes | re.Pattern[bytes], text: bytes) -> np.ndarray:
    """Where a pattern matches: inside its last group that took part, or else inside all of the match."""
    values = np.zeros(len(text), bool)
    for match in re.finditer(pattern, text):
        start, end = match.span(match.lastindex or 0)
        values[start:end] = True
    return values


def _depth(tokens: bytes, text: bytes) -> np.ndarray:
    """What is open after each byte: a token's group says open or close; another token closes all."""
    at, depths = [0], [0]
    for match in re.finditer(tokens, text):
        after = {"open": depths[-1] + 1, "close": max(depths[-1] - 1, 0)}
        at.append(match.end() - 1)
        depths.append(after.get(match.lastgroup or "", 0))
    return np.repeat(np.array(depths, np.float32), np.diff([*at, len(text)]))


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _blank(match: re.Match[bytes]) -> bytes:
    return b" " * len(match[0])


# Each group is where the label of its name holds; the quotes in what is `kept` open nothing.
C_TOKENS = re.compile(
    rb"""/(?P<comment>\*(?:.*?\*(?=/)|.*)|/(?:\\\r?\n|[^\n])*)/?
    |(?P<string>"(?:\\(?:\r\n|.|\Z)|[^"\\\n])*)"?
    |(?P<character>'(?:\\(?:\r\n|.|\Z)|[^'\\\n])*)'?
    |(?P<kept>^[ \t]*\#[ \t]*(?:include[ \t]*<[^>\n]*>|(?:error|warning)\b(?:(?!/[/*])[^\n])*))""",
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
C_DIRECTIVE = re.compile(rb"^[ \t]*(#(?:\\\r?\n|[^\n])*)", re.MULTILINE)


def _code(match: re.Match[bytes]) -> bytes:
    """What stands for a token in the code: blanks for a comment, quotes for a literal."""
    filler = {"kept": match[0], "comment": _blank(match)}
    return filler.get(match.lastgroup or "", b'"' * len(match[0]))


@lru_cache(maxsize=1)
def _c(text: bytes) -> tuple[dict[str, np.ndarray], bytes]:
    """Where each kind of text is that is not code, and the code, with blanks for all else."""
    where = {name: np.zeros(len(text), bool) for name in C_TOKENS.groupindex}
    for match in C_TOKENS.finditer(text):
        assert match.lastgroup  # all alternatives have a group
        where[match.lastgroup][slice(*match.span(match.lastgroup))] = True
    code = C_TOKENS.sub(_code, text)
    where["preprocessor"] = inside(C_DIRECTIVE, code)
    return where, C_DIRECTIVE.sub(_blank, code)


def _latex(text: bytes) -> bytes:
    r"""A text without its comments, \\, \$ and \%."""
    return re.sub(rb"\\[\\$%]|%[^\n]*", _blank, text)


def _from_regex(given: str) -> tuple[str, Rule]:
    name, equals, pattern = given.partition("=")
    if not (name and equals and pattern):
        raise CharLMError(f"--regex must be NAME=PATTERN, got {given!r}")
    try:
        compiled = re.compile(pattern.encode("utf-8", "surrogateescape"))
    except re.error as error:
        raise CharLMError(f"--regex {name} is no regular expression: {error}") from None
    return name, lambda text: inside(compiled, text)


def _from_function(given: str) -> tuple[str, Rule]:
    module, colon, name = given.partition(":")
    if not (module and colon and name):
        raise CharLMError(f"--function must be MODULE:FUNCTION, got {given!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where a user's module is
    try:
        return name, getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CharLMError(f"--function: cannot import {given}: {error}") from None


def _checked(name: str, values: object, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n,) or array.dtype.kind not in "biuf":
        got = f"{list(array.shape)} of {array.dtype}"
        raise CharLMError(f"label {name} must be an array [{n}] of bool or numbers, got {got}")
    if not np.isfinite(array).all():
        raise CharLMError(f"label {name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array if array.dtype == bool else array.astype(np.float32)
