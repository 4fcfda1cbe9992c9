"""The record of a GPU run: parts of steps put together, and bounds on what the files may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

JSON_BYTES = 10_000_000
LOG_BYTES = 200_000  # of each step


def merge(record: dict[str, Any], part: Path, commit: str = "") -> str:
    """Takes a step's part into the record and removes its file; returns why it could not, or nothing.

    Args:
        record: gains what the part has; its machine stays the one that came first.
        part: what the step wrote.
        commit: of the tree, for a machine that could not tell; "-dirty" at its end if there are changes.
    """
    if not part.exists():
        return ""
    try:
        found = json.loads(part.read_text())
    except ValueError as error:
        return f"what it wrote is no JSON: {error}"
    part.unlink()
    if not isinstance(found, dict):
        return f"what it wrote is no record but a {type(found).__name__}"
    machine = found.pop("machine", None)
    if machine and "machine" not in record:
        if commit and machine.get("commit") in (None, "unknown"):
            machine |= {"commit": commit.removesuffix("-dirty"), "dirty": commit.endswith("-dirty")}
        record["machine"] = machine
    for name, values in found.items():
        both = isinstance(values, dict) and isinstance(record.get(name), dict)
        record[name] = record[name] | values if both else values
    return ""


def write(path: Path, record: dict[str, Any], most: int = JSON_BYTES) -> None:
    """Writes the record; where it is too long, its texts are cut, never its numbers."""
    longest, text = 20_000, json.dumps(record, indent=1)
    while len(text.encode()) > most and longest:
        text = json.dumps(_cut(record, longest), indent=1 if longest > 1000 else None)
        longest //= 4
    partial = path.with_suffix(".writing")
    partial.write_text(text + "\n")
    partial.replace(path)


def append_log(path: Path, name: str, log: Path, most: int = LOG_BYTES) -> None:
    """Moves a step's log to the end of the common one, without its middle if it is long."""
    if not log.exists():
        return
    size = log.stat().st_size
    with log.open("rb") as text, path.open("ab") as all_of_them:
        all_of_them.write(f"\n======== {name}\n".encode())
        if size <= most:
            all_of_them.write(text.read())
        else:
            all_of_them.write(text.read(most // 2))
            all_of_them.write(f"\n[... {size - most} bytes left out ...]\n".encode())
            text.seek(size - most // 2)
            all_of_them.write(text.read())
    log.unlink()


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(v, longest) for key, v in value.items()}
    if isinstance(value, list):
        return [_cut(v, longest) for v in value]
    if isinstance(value, str) and len(value) > longest:
        return value[:longest] + f" [... {len(value) - longest} more]"
    return value
