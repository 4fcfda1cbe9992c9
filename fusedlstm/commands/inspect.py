"""`fusedlstm inspect`: what a run is, and whether its checkpoints are whole."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from fusedlstm.charlm import checkpoint
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.report import bits
from fusedlstm.charlm.settings import CharLMError, Settings

LOSSES = ("train", "val")


@dataclass(frozen=True)
class Inspect:
    """Tell what a run is, and whether its checkpoints are whole."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of the run, or that of one checkpoint."""
    json: bool = False
    """For programs: one JSON object."""

    def __call__(self) -> None:
        found = about(self.run)
        if self.json:
            print(json.dumps(found, indent=1))
        else:
            _show(found)
        damaged = [c["folder"] for c in found["checkpoints"] if c["damage"]]
        if damaged:
            share = f"{len(damaged)} of {len(found['checkpoints'])}"
            raise CharLMError(f"{share} checkpoints are damaged: {', '.join(damaged)}")


def about(run: str) -> dict[str, Any]:
    """What a run is, as plain values; losses in nats.

    Raises:
        CharLMError: when there is no run, or not one of its checkpoints is whole.
    """
    folders = list(checkpoint.steps(run).values()) or [Path(run)]
    damage = {folder: checkpoint.damage(folder) for folder in folders}
    whole = [checkpoint.load(folder) for folder in folders if not damage[folder]]
    last = whole[-1] if whole else checkpoint.load(run)  # the latter says what is wrong
    best = min((c for c in whole if c.val is not None), key=lambda c: c.val or 0, default=None)
    parameters = last.part("model.")
    name = ", ".join(last.settings.files) or last.settings.data
    return {
        "run": run,
        "step": last.step,
        "seconds": last.seconds,
        "settings": _changed(last.settings),
        "text": {"name": name, "sha256": last.text_sha256},
        "vocab": last.vocab.record(),
        "parameters": {name: list(parameters[name].shape) for name in sorted(parameters)},
        "parameters_total": sum(tensor.numel() for tensor in parameters.values()),
        "last": _losses(last),
        "best": _losses(best) if best else None,
        "checkpoints": [
            {
                "folder": str(folder),
                "bytes": sum(file.stat().st_size for file in folder.iterdir()),
                "damage": damage[folder] or None,
            }
            for folder in folders
        ],
    }


def _changed(settings: Settings) -> dict[str, Any]:
    """The settings that are not the defaults."""
    defaults = asdict(Settings())
    return {name: value for name, value in asdict(settings).items() if value != defaults[name]}


def _losses(at: Checkpoint) -> dict[str, Any]:
    newest = at.metrics[-1] if at.metrics else {}
    return {"step": at.step} | {name: newest[name] for name in LOSSES if name in newest}


def _show(found: dict[str, Any]) -> None:
    vocab, total = found["vocab"], found["parameters_total"]
    symbols = vocab["symbols"]
    _table("run", {
        "folder": found["run"],
        "text": f"{found['text']['name']} (sha256 {found['text']['sha256'][:16]}…)",
        "vocabulary": f"{len(symbols)} {vocab['kind']}: {_escaped(symbols, vocab['kind'])}",
        "trained": f"{found['step']:,} steps, {found['seconds'] / 60:.1f} minutes",
        **{f"{name} loss": _in_words(found[name]) for name in ("last", "best") if found[name]},
    })  # fmt: skip
    _table("settings that are not the defaults", found["settings"])
    shapes = {name: " x ".join(map(str, shape)) for name, shape in found["parameters"].items()}
    _table(f"{total:,} parameters", shapes)
    _table("checkpoints", {
        Path(c["folder"]).name: f"{decimal(c['bytes'])}, {c['damage'] or 'whole'}"
        for c in found["checkpoints"]
    })  # fmt: skip


def _table(title: str, rows: dict[str, Any]) -> None:
    if not rows:
        return
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name), Text(str(value), overflow="fold"))
    Console(highlight=False).print(Text(title, style="bold"), table)


def _in_words(losses: dict[str, Any]) -> str:
    """Losses in bits per character."""
    words = [f"{name} {bits(losses[name]):.3f}" for name in LOSSES if losses.get(name) is not None]
    return f"step {losses['step']:,}: {', '.join(words) or 'none'}" + (" bits/char" if words else "")


def _escaped(symbols: str, kind: str) -> str:
    """The symbols in one line; what is no character to be shown becomes an escape."""
    printable = (lambda c: c.isascii() and c.isprintable()) if kind == "bytes" else str.isprintable
    return "".join(c if printable(c) else c.encode("unicode_escape").decode() for c in symbols)
