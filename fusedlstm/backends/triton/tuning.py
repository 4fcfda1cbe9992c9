"""Which of the likely plans is fastest on this GPU: timed once, then read from disk.

A plan belongs to a key, and on disk to the versions of Triton and of these sources too. Once chosen it stays
for the life of the process, so that two calls of a shape give the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from .. import accumulation, products
from . import graphs, layer
from .plans import Card, Plan, candidates

NEAR = 2.0  # times the shortest predicted step: up to there a second plan of a regime is timed too
STEPS, ROWS = (4, 32), 8192  # of a trial: at least and at most; steps times sequences beyond the least steps
RUNS = 4  # of a plan, of which the first compiles and captures
Trial = Callable[[Plan], float | None]


class Key(NamedTuple):
    """What a plan is chosen for.

    Args:
        card: the GPU. dtype: of storage. precision: how products are made.
        H: hidden units. D: directions. B: sequences, as `bucket` rounds them.
        way: "forward" or "backward".
    """

    card: Card
    dtype: torch.dtype
    precision: str
    H: int
    D: int
    B: int
    way: str

    def plans(self) -> list[Plan]:
        """Every plan that fits, the shortest predicted step first."""
        return candidates(self.B, self.H, self.D, self.dtype, self.precision, self.card)


_chosen: dict[Key, Plan] = {}
_lock = threading.Lock()
_told: set[str] = set()


def bucket(B: int) -> int:
    """The number of sequences that plans are made for: B rounded up, by 16 up to 128, then by an eighth."""
    width = max(16, triton.next_power_of_2(B) // 8)
    return triton.cdiv(B, width) * width


def choose(key: Key, device: torch.device) -> Plan:
    """The plan of a key: the one that it had before, else that on disk, else the fastest in a trial.

    While a graph is captured nothing can be timed: then the model chooses, and its choice stays.

    Raises:
        ValueError: FUSEDLSTM_AUTOTUNE is neither 0 nor 1.
    """
    if key in _chosen:
        return _chosen[key]
    with _lock:
        if key not in _chosen:
            _chosen[key] = _choose(key, trial(key, device) if graphs.capturable(device) else None)
        return _chosen[key]


def known(key: Key) -> Plan:
    """The plan that choose would return, as far as that is known without a trial: else the model's."""
    return _chosen.get(key) or _choose(key, None)


def trial(key: Key, device: torch.device) -> Trial:
    """Milliseconds of a few steps of a plan, or None if it has not the resources."""
    H, D, B = key.H, key.D, key.B
    steps = min(max(ROWS // B, STEPS[0]), STEPS[1])

    def full(*shape: int, dtype: torch.dtype = key.dtype) -> torch.Tensor:
        # Not random: the user's generator stays as it is.
        return torch.full(shape, 0.01, dtype=dtype, device=device)

    def run(plan: Plan) -> Callable[[], Any]:
        N, state = steps * B, full(D, B, H)
        rows = products.Steps(steps, B, N, H, D, None, None)
        w_hh, gates, c = full(D, 4 * H, H), full(D, N, 4 * H), full(D, N, H, dtype=accumulation(key.dtype))
        y, h_n, c_n = full(N, D * H), full(D, B, H), full(D, B, H)
        if key.way == "forward":
            bias = full(D, 4 * H, dtype=torch.float32)
            call = products.Forward(rows, gates, None, bias, w_hh, state, state, y, h_n, c_n, c, gates)
            return lambda: layer.forward(plan, key.precision, call)
        dgates = torch.empty_like(gates)
        back = products.Backward(rows, y, None, None, state, w_hh, c, gates, dgates, h_n, c_n)
        return lambda: layer.backward(plan, key.precision, back)

    def time_ms(plan: Plan) -> float | None:
        try:
            return milliseconds(run(plan))
        except (triton.runtime.errors.OutOfResources, torch.OutOfMemoryError):
            return None

    return time_ms


def milliseconds(run: Callable[[], Any]) -> float:
    """Time of a run on the current GPU, the shortest of a few."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(RUNS):
        torch.cuda._sleep(500_000)  # cycles, in which launches queue up: the host's time is not counted
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return min(times[1:])


def pruned(plans: Sequence[Plan]) -> list[Plan]:
    """The best of each regime by the model, and a second one where it is near the best of all."""
    found: dict[str, list[Plan]] = {}
    for plan in plans:
        same = found.setdefault(plan.regime, [])
        if not same or (len(same) == 1 and plan.step_us <= NEAR * plans[0].step_us):
            same.append(plan)
    return [plan for same in found.values() for plan in same]


def _choose(key: Key, time_ms: Trial | None) -> Plan:
    plans = key.plans()
    if not _on():
        return plans[0]
    likely = pruned(plans)
    found = likely[0] if len(likely) == 1 else _read(key, likely)
    if found is not None or time_ms is None:
        return found or plans[0]
    times = {plan: ms for plan in likely if (ms := time_ms(plan)) is not None}
    if not times:
        return plans[0]
    best = min(times, key=lambda plan: times[plan])
    _write(key, best, times)
    return best


def _on() -> bool:
    value = os.environ.get("FUSEDLSTM_AUTOTUNE", "1")
    if value not in ("0", "1"):
        raise ValueError(f"FUSEDLSTM_AUTOTUNE must be 0 (off) or 1, got {value!r}")
    return value == "1"


def _record(key: Key) -> dict[str, Any]:
    """A key as it stands on disk."""
    plain = {**key._asdict(), "card": dataclasses.asdict(key.card), "dtype": str(key.dtype)}
    return {**plain, "triton": triton.__version__, "sources": _sources()}


@functools.cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _file(key: Key) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    name = hashlib.sha256(json.dumps(_record(key)).encode()).hexdigest()[:32]
    return folder / "fusedlstm" / "plans" / f"{name}.json"


def _read(key: Key, plans: Sequence[Plan]) -> Plan | None:
    """The plan on disk, if it is one of these."""
    try:
        found = json.loads(_file(key).read_text())
        if found["key"] != _record(key):
            raise ValueError("it is of another key")
        return next(plan for plan in plans if dataclasses.asdict(plan) == found["plan"])
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, StopIteration) as error:
        _warn("cannot read a plan that was kept, so it times again", error)
        return None


def _write(key: Key, best: Plan, times: dict[Plan, float]) -> None:
    timed = [{"ms": ms, "plan": dataclasses.asdict(plan)} for plan, ms in times.items()]
    record = {"key": _record(key), "plan": dataclasses.asdict(best), "timed": timed}
    try:
        file = _file(key)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all, whoever reads it meanwhile.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False) as part:
            json.dump(record, part, indent=1)
        try:
            os.replace(part.name, file)
        finally:
            Path(part.name).unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        _warn("cannot keep a plan that it timed, so the next process times again", error)


def _warn(text: str, error: Exception) -> None:
    """Once for each text: the same folder would say the same for every shape."""
    if text not in _told:
        _told.add(text)
        warnings.warn(f"fusedlstm's autotuning {text}: {error!r}", RuntimeWarning, stacklevel=2)
