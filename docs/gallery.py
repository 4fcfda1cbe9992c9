"""Makes docs/gallery.md: what the cells of models of real texts do, in figures and pictures.

    python docs/gallery.py linux.txt warandpeace.txt --minutes 10

trains a model on each text but its end, which `fusedlstm cells` and `fusedlstm html` then read, and has
Chromium take pictures of the pages.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.report import bits

DOCS = Path(__file__).parent
PICTURES = DOCS / "gallery"
BROWSER = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1400,1600", "--virtual-time-budget=10000",
]  # fmt: skip
LOOKS = {"light": [], "dark": ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]}
HEAD = """# Gallery

Made by `python docs/gallery.py`, from models that trained for minutes on a CPU. `fusedlstm cells` read
{characters:,} characters of the end of each text, which the models had not seen; a cell counts by the rule
that stands under its table.
"""


def main(
    texts: Positional[list[Path]],
    minutes: float = 10.0,
    characters: int = 100_000,
    runs: Path = Path("runs/gallery"),
) -> None:
    """Trains, finds, takes pictures and writes the page.

    Args:
        texts: files to train on.
        minutes: of training for each; a run that is there is taken as it is.
        characters: of its end that are held out.
        runs: folder for the runs.
    """
    PICTURES.mkdir(exist_ok=True)
    parts = [HEAD.format(characters=characters)]
    for text in texts:
        names = (f"{text.stem}{end}" for end in ("", "-seen.txt", "-held-out.txt", ".html"))
        run, seen, held_out, page = (runs / name for name in names)
        runs.mkdir(parents=True, exist_ok=True)
        whole = text.read_bytes()
        held_out.write_bytes(whole[-characters:])
        if not checkpoint.exists(run):
            seen.write_bytes(whole[:-characters])
            _run("train", seen, "--out", run, "--minutes", minutes, "--rnn-size", 128, "--seq-length", 64)
        table = _run("cells", run, held_out, "--characters", characters)
        _run("html", run, held_out, "--characters", 20_000, "--out", page)
        for look, flags in LOOKS.items():
            picture = PICTURES / f"{text.stem}-{look}.png"
            subprocess.run([*BROWSER, *flags, f"--screenshot={picture}", page.resolve().as_uri()], check=True)
        parts.append(_part(text.stem, run, table))
    (DOCS / "gallery.md").write_text("\n".join(parts), "utf-8")


def _part(name: str, run: Path, table: str) -> str:
    """The section of one text."""
    saved = checkpoint.load(run)
    size = f"{saved.settings.num_layers} layers of {saved.settings.rnn_size}"
    loss = f"{bits(saved.metrics[-1]['val']):.3f} bits a character in validation"
    words = f"{size}, {saved.seconds / 60:.0f} minutes of training, {loss}."
    pictures = (f"![{name}, {look}](gallery/{name}-{look}.png)" for look in LOOKS)
    return "\n\n".join([f"## {name}", words, f"```\n{table.strip()}\n```", *pictures]) + "\n"


def _run(*words: object) -> str:
    """One command of fusedlstm; returns what it printed."""
    command = [sys.executable, "-m", "fusedlstm", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


if __name__ == "__main__":
    tyro.cli(main)
