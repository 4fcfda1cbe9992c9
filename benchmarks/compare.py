"""Two records, measurement by measurement: what became slower, what faster, and by how much in all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean

from benchmarks.results import Record, load


@dataclass(frozen=True)
class Spread:
    """A median and its quantiles, in ms or, where nothing varies, instructions."""

    p20: float
    p50: float
    p80: float


@dataclass(frozen=True)
class Change:
    """One measurement in both records."""

    name: str
    before: Spread
    after: Spread

    @property
    def times(self) -> float:
        """How many times as fast the second is."""
        return self.before.p50 / self.after.p50

    @property
    def verdict(self) -> str:
        """Same, where the ranges from p20 to p80 touch."""
        if self.after.p80 < self.before.p20:
            return "faster"
        return "slower" if self.after.p20 > self.before.p80 else "same"


def spreads(record: Record) -> dict[str, Spread]:
    """What is compared, by "part/row/contender"."""
    found = {
        f"{part}/{row}/{name}": Spread(times["p20"], times["p50"], times["p80"])
        for part in ("layer", "train", "sample")
        for row, values in record.get(part, {}).items()
        for name, times in values.get("ms", {}).items()
    }
    for name, values in record.get("instructions", {}).items():
        found[f"instructions/{name}"] = Spread(*[values["per_pass"]] * 3)
    return found


def wrong(record: Record) -> list[str]:
    """The measurements that have no time since their result was wrong, by "part/row"."""
    return [
        f"{part}/{row}"
        for part in ("layer", "train", "sample")
        for row, values in record.get(part, {}).items()
        if "ms" not in values and "ours" not in values.get("skipped", {})
    ]


def table(before: Record, after: Record) -> str:
    """What both have, from the most slowed to the most sped up; what one has; what is wrong; the means."""
    a, b = spreads(before), spreads(after)
    changes = sorted((Change(k, a[k], b[k]) for k in a if k in b), key=lambda c: (c.times, c.name))
    machines = before["machine"], after["machine"]
    pairs = {k: [machine.get(k) for machine in machines] for k in machines[0] | machines[1]}
    lines = [f"{k}: {old} -> {new}" for k, (old, new) in pairs.items() if old != new]
    lines += [
        f"{c.name:50} {c.before.p50:14,.3f} -> {c.after.p50:14,.3f} {c.times:6.2f} times as fast  {c.verdict}"
        for c in changes
    ]
    lines += [f"{k}: only in the {which}" for k, which in _only(a, b, "first") + _only(b, a, "second")]
    for which, record in (("first", before), ("second", after)):
        lines += [f"{name}: WRONG RESULT in the {which}" for name in wrong(record)]
    return "\n".join(lines + means(changes))


def means(changes: list[Change]) -> list[str]:
    """For each part and contender the geometric mean of its changes, and how many are beyond the spread."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        part, *_, who = change.name.split("/")
        groups.setdefault(part if part == "instructions" else f"{part}, {who}", []).append(change)
    return [
        f"geometric mean, {name}: {geometric_mean([c.times for c in group]):.3f} times as fast; "
        + ", ".join(f"{sum(c.verdict == v for c in group)} {v}" for v in ("faster", "same", "slower"))
        for name, group in groups.items()
    ]


def main(before: Path, after: Path) -> None:
    """Compares two records; never fails on time.

    Args:
        before: a record, A.json.
        after: another one, B.json.
    """
    print(table(load(before), load(after)))


def _only(these: dict[str, Spread], others: dict[str, Spread], which: str) -> list[tuple[str, str]]:
    return [(k, which) for k in these if k not in others]


if __name__ == "__main__":
    import tyro

    tyro.cli(main, config=(tyro.conf.PositionalRequiredArgs,))
