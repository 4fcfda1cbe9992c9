"""Autotuning with a clock of our own: which plan is chosen, how often it is timed, and what is on disk."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")
if torch.cuda.is_available():
    pytest.skip("a GPU is here: tests/test_gpu.py times plans on it", allow_module_level=True)

from triton.runtime.errors import OutOfResources

import fusedlstm
from fusedlstm.backends import Spec, triton
from fusedlstm.backends.triton import graphs, layer, tuning
from fusedlstm.backends.triton.plans import Plan, candidates
from triton_backend import A100, H100, layer_call, on_the_cpu  # noqa: F401

GPU = torch.device("cpu")  # in the place of one
KEY = tuning.Key(H100, torch.bfloat16, "ieee", 128, 1, 16, "forward")


class Clock:
    """Takes so long for a plan as its regime says, and counts."""

    def __init__(self) -> None:
        self.ms: dict[str, float | None] = {"tile": 3.0, "grid": 1.0, "step": 2.0}
        self.timed: list[Plan] = []

    def __call__(self, plan: Plan) -> float | None:
        self.timed.append(plan)
        return self.ms[plan.regime]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Clock]:
    found = Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FUSEDLSTM_AUTOTUNE", raising=False)
    monkeypatch.setattr(graphs, "capturable", lambda device: True)
    monkeypatch.setattr(tuning, "trial", lambda key, device: found)
    monkeypatch.setattr(tuning, "_told", set())
    new_process()
    yield found
    new_process()


def new_process() -> None:
    tuning._chosen.clear()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_the_fastest_is_chosen_and_stays(clock: Clock) -> None:
    assert KEY.plans()[0].regime == "tile"
    chosen = tuning.choose(KEY, GPU)
    assert chosen.regime == "grid" and chosen == next(p for p in KEY.plans() if p.regime == "grid")
    count = len(clock.timed)
    assert {plan.regime for plan in clock.timed} == {"tile", "grid", "step"} and count == len(
        set(clock.timed)
    )
    clock.ms["tile"] = 0.5
    assert tuning.choose(KEY, GPU) is chosen and len(clock.timed) == count


def test_the_next_process_reads_and_times_nothing(clock: Clock, tmp_path: Path) -> None:
    chosen = tuning.choose(KEY, GPU)
    (file,) = files(tmp_path)
    record = json.loads(file.read_text())
    assert {timed["ms"] for timed in record["timed"]} == {1.0, 2.0, 3.0}
    assert record["key"]["H"] == 128 and record["key"]["way"] == "forward"
    clock.timed.clear()
    new_process()
    assert tuning.known(KEY) == chosen and tuning.choose(KEY, GPU) == chosen and not clock.timed


def other_versions(name: str, value: Any) -> Callable[[pytest.MonkeyPatch], tuning.Key]:
    def change(monkeypatch: pytest.MonkeyPatch) -> tuning.Key:
        if name == "triton":
            monkeypatch.setattr(tuning.triton, "__version__", value)
        elif name == "sources":
            monkeypatch.setattr(tuning, "_sources", lambda: value)
        else:
            return KEY._replace(**{name: value})
        return KEY

    return change


@pytest.mark.parametrize(
    "change",
    [
        other_versions("triton", "9.9.9"), other_versions("sources", "changed"), other_versions("card", A100),
        other_versions("dtype", torch.float16), other_versions("H", 127), other_versions("D", 2),
        other_versions("B", 32), other_versions("way", "backward"),
    ],
)  # fmt: skip
def test_what_a_plan_depends_on_makes_it_timed_anew(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, change: Callable[[pytest.MonkeyPatch], tuning.Key]
) -> None:
    tuning.choose(KEY, GPU)
    clock.timed.clear()
    new_process()
    tuning.choose(change(monkeypatch), GPU)
    assert clock.timed


def test_the_sources_are_hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("one")
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "tuning.py"))
    hashes = []
    for text in ("one", "two", "one"):
        (tmp_path / "kernels.py").write_text(text)
        tuning._sources.cache_clear()
        hashes.append(tuning._sources())
    tuning._sources.cache_clear()
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"key": {}}', "other key", "other plan", "not text"]
)
def test_a_damaged_file_is_told_once_and_timed_again(clock: Clock, tmp_path: Path, text: str) -> None:
    chosen = tuning.choose(KEY, GPU)
    (file,) = files(tmp_path)
    record = json.loads(file.read_text())
    if text == "other key":
        record["key"]["H"] = 64
    if text == "other plan":
        record["plan"]["BLOCK_B"] = 512
    if text == "not text":
        file.write_bytes(b"\xff\xfe\x00")
    else:
        file.write_text(json.dumps(record) if text.startswith("other") else text)
    clock.timed.clear()
    new_process()
    with pytest.warns(RuntimeWarning, match="cannot read a plan"):
        assert tuning.choose(KEY, GPU) == chosen
    assert clock.timed
    clock.timed.clear()
    new_process()
    assert tuning.choose(KEY, GPU) == chosen and not clock.timed  # it was mended


def test_a_folder_that_cannot_be_written_is_told_once(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder: root too cannot write there
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert tuning.choose(KEY, GPU).regime == "grid"
        assert tuning.choose(KEY._replace(H=64), GPU).regime == "grid"
    assert len(told) == 2 and "cannot keep a plan" in str(told[1].message)  # one for reading, one for writing


def test_a_write_is_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="no space left"):
        tuning.choose(KEY, GPU)
    assert not files(tmp_path)


def test_nothing_is_timed_while_capturing_and_the_plan_stays(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path
) -> None:
    monkeypatch.setattr(graphs, "capturable", lambda device: False)
    assert tuning.choose(KEY, GPU) == KEY.plans()[0]
    monkeypatch.setattr(graphs, "capturable", lambda device: True)
    assert tuning.choose(KEY, GPU) == KEY.plans()[0]
    assert not clock.timed and not files(tmp_path)


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, clock: Clock, tmp_path: Path) -> None:
    tuning.choose(KEY, GPU)
    clock.timed.clear()
    new_process()
    monkeypatch.setenv("FUSEDLSTM_AUTOTUNE", "0")
    assert tuning.choose(KEY, GPU) == KEY.plans()[0] and not clock.timed
    new_process()
    monkeypatch.setenv("FUSEDLSTM_AUTOTUNE", "off")
    with pytest.raises(ValueError, match=r"FUSEDLSTM_AUTOTUNE must be 0 .* got 'off'"):
        tuning.choose(KEY, GPU)


def test_plans_without_the_resources_are_left_out(clock: Clock, tmp_path: Path) -> None:
    clock.ms["grid"] = None
    assert tuning.choose(KEY, GPU).regime == "step"
    new_process()
    clock.ms = dict.fromkeys(clock.ms)
    other = KEY._replace(H=64)
    assert tuning.choose(other, GPU) == other.plans()[0]
    assert len(files(tmp_path)) == 1


def test_few_plans_are_timed() -> None:
    for B, H, D in [(16, 16, 1), (16, 128, 1), (112, 512, 1), (64, 1024, 2), (16, 3000, 1)]:
        plans = candidates(B, H, D, torch.bfloat16, "ieee", H100)
        likely = tuning.pruned(plans)
        regimes = [plan.regime for plan in likely]
        assert plans[0] in likely and len(likely) <= 5 and set(regimes) == {plan.regime for plan in plans}
        for regime in set(regimes):
            best, *second = (plan.step_us for plan in likely if plan.regime == regime)
            assert best == min(plan.step_us for plan in plans if plan.regime == regime)
            assert all(best <= us <= tuning.NEAR * plans[0].step_us for us in second)


def test_buckets_hold_all_their_batches() -> None:
    buckets = [tuning.bucket(B) for B in range(1, 2049)]
    assert all(B <= found <= B + max(15, B // 4) for B, found in enumerate(buckets, 1))
    assert buckets == sorted(buckets) and len(set(buckets)) <= 8 + 4 * 4
    assert {tuning.bucket(found) for found in buckets} == set(buckets)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[str, str, int]]]:
    """The trials as they are, but for the clock: pass, regime and steps of every run of a layer."""
    found: list[tuple[str, str, int]] = []

    def note(way: str, x: int) -> None:
        run = getattr(layer, way)

        def noted(plan: Plan, *args: Any) -> Any:
            found.append((way, plan.regime, len(args[x]) // args[x + 2].shape[1]))
            return run(plan, *args)

        monkeypatch.setattr(layer, way, noted)

    def milliseconds(run: Callable[[], Any]) -> float:
        run()
        return {"tile": 3.0, "grid": 1.0, "step": 2.0}[found[-1][1]]

    note("forward", 1)
    note("backward", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FUSEDLSTM_AUTOTUNE", raising=False)
    monkeypatch.setattr(tuning, "milliseconds", milliseconds)
    monkeypatch.setattr(tuning, "STEPS", (1, 2))
    new_process()
    yield found
    new_process()


def test_a_layer_runs_as_tuned(monkeypatch: pytest.MonkeyPatch, ran: list[tuple[str, str, int]]) -> None:
    spec = Spec("cpu", torch.bfloat16, 4, 3, 5, 24, 24)
    call = layer_call(torch.bfloat16, H=24)
    model = tuning.known(triton._key(3, 24, 1, torch.bfloat16, GPU, "forward"))
    assert triton.kernel(spec) == model.regime == "tile"
    triton.layer_forward(*call, True)  # on a CPU nothing is timed
    assert ran == [("forward", "tile", 4)]
    new_process()
    ran.clear()
    monkeypatch.setattr(tuning.graphs, "capturable", lambda device: True)
    monkeypatch.setattr(graphs, "launch", plain_launches)
    numbers = torch.get_rng_state()
    y, _, _, c, gates = triton.layer_forward(*call, True)
    triton.layer_backward(y, None, None, *call, y, c, gates, True, True)
    assert torch.equal(numbers, torch.get_rng_state())
    assert triton.kernel(spec) == "grid"
    trials = [("tile", 2), ("grid", 2), ("step", 2)]
    for way in ("forward", "backward"):
        *timed, last = [found[1:] for found in ran if found[0] == way]
        assert set(timed) == set(trials) and last == ("grid", 4)
    ran.clear()
    triton.layer_forward(*call, True)
    assert ran == [("forward", "grid", 4)]


def plain_launches(
    kernel: Any, graph_kernel: Any, grid: Any, steps: Any, tensors: Any, sizes: Any, constants: Any
) -> None:
    for s in steps:
        kernel[grid](**tensors, s=s, **sizes, **constants)


@pytest.mark.parametrize("error", [OutOfResources(300, 227, "shared memory"), torch.OutOfMemoryError("full")])
def test_a_trial_survives_what_does_not_fit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(tuning, "milliseconds", run)
    assert tuning.trial(KEY, GPU)(KEY.plans()[0]) is None


def test_importing_times_nothing(ran: list[tuple[str, str, int]]) -> None:
    assert fusedlstm.explain(fusedlstm.LSTM(5, 24, backend="triton"), torch.zeros(4, 3, 5)) and not ran
