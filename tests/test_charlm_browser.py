"""The page in a real browser: its colours are the arrays; clicks, keys and drags do what they should."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedlstm.charlm.activations import Activations
from fusedlstm.charlm.pages import Page
from test_charlm_html import PLANTED, inside_brackets, sentence, synthetic_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1300,1000",
)  # fmt: skip
MARKUP = b'</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 1"> [in] '
LONG = 100_000
DEADLINE_SECONDS = 20.0
ALPHA = 0.0051  # browsers tell opacity with two digits where these will do
SPANS = """
return Array.from(document.querySelectorAll('.row'), (row) => [Number(row.dataset.start),
  Array.from(row.children, (line) => Array.from(line.children,
    (span) => [span.textContent, getComputedStyle(span).backgroundColor]))]);
"""
UNNAMED = {"button", "combobox", "slider", "radio", "image", "application", "region", "table"}
Browser = Any
Drawn = dict[int, tuple[str, str]]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "samples").mkdir()
    for step in (10, 20, 30):
        (folder / "samples" / f"step-{step:08}.txt").write_text(f"<b>{step}</b>")
    lines = [
        f'{{"step": {step}, "train": {3 - step / 20}, "val": {3.1 - step / 20}}}\n' for step in (10, 20, 30)
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def short(run: Path) -> tuple[Page, Activations]:
    return synthetic_page(sentence(1500), run)


@pytest.fixture
def opened(browser: Browser, short: tuple[Page, Activations], tmp_path: Path) -> Iterator[Browser]:
    """The browser with the short page; in the end nothing may have gone wrong there, or have been fetched."""
    yield opening(browser, short[0], tmp_path)
    clean(browser)


def opening(browser: Browser, page: Page, folder: Path) -> Browser:
    page.save(folder / "page.html")
    address = (folder / "page.html").as_uri()
    browser.get(address)
    # On a busy machine the driver may be back before the page is.
    ready = "return location.href === arguments[0] && Boolean(document.body?.dataset.ready)"
    WebDriverWait(browser, DEADLINE_SECONDS).until(lambda b: b.execute_script(ready, address))
    return browser


def clean(browser: Browser) -> None:
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)") == []


def drawn(browser: Browser) -> tuple[Drawn, list[Drawn]]:
    """What is in view, by place: the characters and, in lines below, the guesses; with their colours."""
    lines: list[Drawn] = [{} for _ in range(6)]
    for start, row in browser.execute_script(SPANS):
        for line, spans in zip(lines, row, strict=False):
            line |= {start + n: tuple(span) for n, span in enumerate(spans)}
    return lines[0], lines[1:]


def shade(colour: str) -> tuple[str, float]:
    """A colour and how much of it there is."""
    red, green, blue, *alpha = map(float, re.findall(r"[\d.]+", colour))
    return f"{red:g} {green:g} {blue:g}", alpha[0] if alpha else 1.0


def variable(browser: Browser, name: str) -> str:
    return browser.execute_script(
        f"return getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()"
    )


def assert_coloured(browser: Browser, values: np.ndarray) -> None:
    """All characters in view have the colours of a cell's values [N]."""
    characters, _ = drawn(browser)
    assert len(characters) > 50
    hues = {-1: variable(browser, "--low"), 1: variable(browser, "--high")}
    for n, (_, colour) in characters.items():
        hue, alpha = shade(colour)
        whole = round(float(values[n]) * 127)
        assert alpha == pytest.approx(abs(whole) / 127, abs=ALPHA), n
        assert whole == 0 or hue == hues[int(np.sign(whole))], n


def at(browser: Browser, id: str) -> Any:
    return browser.find_element(By.ID, id)


def character(browser: Browser, n: int) -> Any:
    """The element of the character at a place, which must be in view."""
    return browser.execute_script("return reader.span(arguments[0])", n)


def pressed(browser: Browser) -> str:
    return browser.find_element(By.CSS_SELECTOR, "#map [aria-pressed=true]").get_attribute("data-cell")


def test_the_strip_is_the_arrays(opened: Browser, short: tuple[Page, Activations]) -> None:
    read, text = short[1], sentence(1500).decode()
    assert pressed(opened) == "1.3"
    assert_coloured(opened, read.values["tanh_c"][:, 1, 3])
    characters, guesses = drawn(opened)
    signs = {" ": "\xa0", "\n": "\u23ce", "\t": "\u21e5"}
    assert all(shown == signs.get(text[n], text[n]) for n, (shown, _) in characters.items())
    guess_hue = variable(opened, "--guess")
    for k, line in enumerate(guesses):
        assert line.keys() == characters.keys()
        for n, (shown, colour) in line.items():
            expected = chr(read.likeliest[n, k])
            assert shown == signs.get(expected, expected)
            assert shade(colour)[1] == pytest.approx(read.probabilities[n, k], abs=ALPHA)
            assert shade(colour)[1] == 0 or shade(colour)[0] == guess_hue


def test_the_text_is_there_before_the_page_is_drawn(
    browser: Browser, short: tuple[Page, Activations], tmp_path: Path
) -> None:
    late = {"source": "window.ResizeObserver = class { observe() {} }"}
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", late)
    try:
        assert_coloured(opening(browser, short[0], tmp_path), short[1].values["tanh_c"][:, 1, 3])
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_a_click_and_the_lists_choose_a_cell(opened: Browser, short: tuple[Page, Activations]) -> None:
    values = short[1].values
    opened.find_element(By.CSS_SELECTOR, "#map [data-cell='1.6']").click()
    assert pressed(opened) == "1.6" and Select(at(opened, "cell")).first_selected_option.text.startswith("6")
    assert_coloured(opened, values["tanh_c"][:, 1, 6])
    Select(at(opened, "layer")).select_by_value("0")
    assert_coloured(opened, values["tanh_c"][:, 0, 0])
    Select(at(opened, "cell")).select_by_value("5")
    assert_coloured(opened, values["tanh_c"][:, 0, 5])
    opened.find_element(By.CSS_SELECTOR, "#quantities input[value=o]").find_element(By.XPATH, "..").click()
    assert_coloured(opened, values["o"][:, 0, 5])
    opened.find_element(By.CSS_SELECTOR, "circle[data-cell='1.7']").click()
    assert_coloured(opened, values["o"][:, 1, 7])
    card = opened.find_element(By.CSS_SELECTOR, ".card")
    assert "cell 1.3, high there, AUROC 1.00" in card.text
    card.click()
    assert pressed(opened) == "1.3"


def test_pointing_tells_of_a_character(opened: Browser, short: tuple[Page, Activations]) -> None:
    read, n = short[1], sentence(100).index(b"]") - 2
    ActionChains(opened).move_to_element(character(opened, n)).perform()
    told = at(opened, "here").text.split("\n")
    assert told[0] == "e"
    assert dict(zip(told[1::2], told[2::2], strict=True)) == {
        "byte": "0x65", "place": str(n + 1), "tanh(c) of 1.3": "+0.90", "loss": f"{read.bits[n]:.2f} bits",
    }  # fmt: skip
    guesses = [row.text.split("\n") for row in opened.find_elements(By.CSS_SELECTOR, "#guesses li")]
    for k, (name, share) in enumerate(guesses):
        assert name == {" ": "space"}.get(chr(read.likeliest[n, k]), chr(read.likeliest[n, k]))
        assert float(share.removesuffix(" %")) == pytest.approx(100 * read.probabilities[n, k], abs=0.06)
    assert "cursor" in character(opened, n).get_attribute("class")


def test_dragging_finds_the_planted_cell(opened: Browser) -> None:
    text = sentence(1500)
    first, last = text.index(b"["), text.index(b"]") - 1
    assert inside_brackets(text)[first : last + 1].all()
    opened.find_element(By.CSS_SELECTOR, "#map [data-cell='1.0']").click()
    drag = ActionChains(opened).move_to_element(character(opened, first)).click_and_hold()
    drag.move_to_element(character(opened, last)).release().perform()
    picked = opened.find_elements(By.CSS_SELECTOR, ".characters .picked")
    assert (
        "".join(span.text or " " for span in picked).replace("\xa0", " ") == text[first : last + 1].decode()
    )
    found = opened.find_element(By.CSS_SELECTOR, "#matches button")
    assert found.get_attribute("data-cell") == f"{PLANTED[0]}.{PLANTED[1]}"
    assert "+0.90" in found.text
    found.click()
    assert pressed(opened) == "1.3"
    character(opened, 1).click()
    assert not at(opened, "match").is_displayed()


def test_keys_do_what_the_mouse_does(opened: Browser) -> None:
    text = sentence(1500)
    first, last = text.index(b"["), text.index(b"]") - 1
    reader = at(opened, "reader")
    opened.execute_script("arguments[0].focus()", reader)
    reader.send_keys(Keys.ARROW_RIGHT * first)
    assert at(opened, "spoken").get_attribute("textContent").startswith("[, tanh(c) of 1.3 +0.90, loss")
    there, back = Keys.ARROW_RIGHT * (last - first + 2), Keys.ARROW_LEFT * 2
    ActionChains(opened).key_down(Keys.SHIFT).send_keys(there + back).key_up(Keys.SHIFT).perform()
    assert len(opened.find_elements(By.CSS_SELECTOR, ".characters .picked")) == last - first + 1
    assert opened.find_element(By.CSS_SELECTOR, "#matches button").get_attribute("data-cell") == "1.3"
    reader.send_keys(Keys.CONTROL, Keys.END)
    assert "1,500" in at(opened, "here").text and character(opened, 1499)
    reader.send_keys(Keys.HOME)
    assert not at(opened, "match").is_displayed()


def test_the_text_alone_keeps_its_lines(opened: Browser) -> None:
    opened.find_element(By.CSS_SELECTOR, "#views input[value=alone]").find_element(By.XPATH, "..").click()
    text = sentence(1500).decode()
    rows = opened.execute_script(SPANS)
    assert all(len(row) == 1 for _, row in rows)
    starts = [start for start, _ in rows]
    assert starts == [0, *(n + 1 for n, c in enumerate(text) if c == "\n")][: len(starts)]
    assert "\u23ce" in rows[0][1][0][-1][0]


def test_samples_go_with_the_curve(opened: Browser) -> None:
    slider, marker = at(opened, "step"), opened.find_element(By.CSS_SELECTOR, "#curve .now")
    assert at(opened, "sample").text == "<b>30</b>"
    before = marker.get_attribute("d")
    slider.send_keys(Keys.ARROW_LEFT)
    assert at(opened, "sample").text == "<b>20</b>" and at(opened, "step_shown").text == "20"
    assert marker.get_attribute("d") != before
    curve = opened.find_element(By.CSS_SELECTOR, "#curve svg")
    assert curve.accessible_name.endswith(f"training {1.5 / np.log(2):.3f}, validation {1.6 / np.log(2):.3f}")


def test_dots_are_the_shares(opened: Browser, short: tuple[Page, Activations]) -> None:
    gate = short[1].values["f"][:, 1]
    figure = opened.find_elements(By.CSS_SELECTOR, "#gates figure")[4]
    assert figure.text.startswith("Layer 1, forget gate")
    titles = [title.get_attribute("textContent") for title in figure.find_elements(By.TAG_NAME, "title")]
    assert titles == [
        f"cell 1.{k}: shut {(gate[:, k] < 0.1).mean():.2f}, open {(gate[:, k] > 0.9).mean():.2f}"
        for k in range(8)
    ]
    captions = [caption.text for caption in opened.find_elements(By.CSS_SELECTOR, "#losses caption")]
    assert len(captions) == 5 and captions[0] == "Bits by kind of character"


def test_everything_has_a_name_for_those_who_hear_it(opened: Browser) -> None:
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = [
        (n["role"]["value"].lower(), n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]
    ]
    assert {"application", "slider", "combobox", "table", "image"} <= {role for role, _ in roles}
    assert [role for role, name in roles if role in UNNAMED and not name] == []


def test_dark_is_dark_and_the_text_can_be_read(opened: Browser) -> None:
    def brightness(selector: str, which: str) -> float:
        colour = opened.execute_script(
            f"return getComputedStyle(document.querySelector('{selector}')).{which}"
        )
        return sum(map(float, shade(colour)[0].split())) / 3 / 255

    pixels = "const c = document.querySelector('.card canvas'); return c.toDataURL()"
    light, drawn_light = brightness("body", "backgroundColor"), opened.execute_script(pixels)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    try:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        assert light > 0.9 and brightness("body", "backgroundColor") < 0.15
        for selector in ("body", ".characters span", "#sample", "select"):
            assert brightness(selector, "color") > 0.6, selector
        assert opened.execute_script(pixels) != drawn_light
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_markup_in_the_text_is_text(browser: Browser, tmp_path: Path) -> None:
    made, _ = synthetic_page(MARKUP * 12)
    opened = opening(browser, made, tmp_path)
    at(opened, "reader").send_keys(Keys.ARROW_RIGHT)
    assert opened.execute_script("return [window.hurt, document.images.length, document.scripts.length]")[
        :2
    ] == [None, 0]
    characters, _ = drawn(opened)
    shown = "".join(characters[n][0] for n in range(len(MARKUP))).replace("\xa0", " ")
    assert shown == MARKUP.decode()
    clean(browser)


def test_of_a_long_text_only_what_is_in_view_exists(browser: Browser, tmp_path: Path) -> None:
    made, read = synthetic_page(sentence(LONG), kept=6)
    opened = opening(browser, made, tmp_path)
    nodes = "return document.querySelectorAll('#rows *').length"
    for place in (0, LONG // 2, LONG - 1):
        opened.execute_script("reader.show(arguments[0], true)", place)
        assert opened.execute_script(nodes) < 10_000
        assert place in drawn(opened)[0]
        assert_coloured(opened, read.values["tanh_c"][:, 1, 3])
    assert pressed(opened) == "1.3" and "6 most interesting" in at(opened, "kept").text
    assert opened.execute_script("return document.querySelectorAll('*').length") < 12_000
    clean(browser)
