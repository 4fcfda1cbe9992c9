"""What follows a run: its files say what was told, and no more; what is missing is named or done without."""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as xml
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fusedlstm.charlm import curve, watch
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.watch import METRICS, MetricsFile, Watcher, Watchers, read_metrics

TENSORBOARD = Settings(tensorboard=True)
WANDB = Settings(wandb=True, rnn_size=7)


def steps(run: Path) -> list[int]:
    return [line["step"] for line in read_metrics(run)]


def test_each_step_is_a_line_of_json(tmp_path: Path) -> None:
    watchers = Watchers(Settings(), tmp_path / "run")
    watchers.metrics(10, {"step": 10, "train": 2.5, "learning_rate": 1e-3})
    lines = [{"step": 10, "train": 2.5, "learning_rate": 1e-3}]
    assert read_metrics(tmp_path / "run") == lines  # while the run goes on
    watchers.metrics(20, {"val": math.nan, "train": math.inf})
    lines.append({"step": 20, "val": None, "train": None})  # type: ignore[dict-item]
    text = (tmp_path / "run" / METRICS).read_text()
    assert [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()] == lines


def test_a_run_that_goes_on_cuts_what_came_after(tmp_path: Path) -> None:
    first = MetricsFile(tmp_path)
    for step in (10, 20, 20, 30):
        first.metrics(step, {"train": step / 7})
    second = MetricsFile(tmp_path, 20)
    assert read_metrics(tmp_path) == [{"step": s, "train": s / 7} for s in (10, 20, 20)]
    second.metrics(25, {})
    assert steps(tmp_path) == [10, 20, 20, 25]
    assert steps(tmp_path) == [10, 20, 20, 25]  # reading takes nothing away
    MetricsFile(tmp_path)
    assert (tmp_path / METRICS).read_bytes() == b""


@pytest.mark.parametrize("cut", range(1, 27))
def test_an_unfinished_line_is_none(tmp_path: Path, cut: int) -> None:
    MetricsFile(tmp_path).metrics(10, {"train": 1.0})
    MetricsFile(tmp_path, 10).metrics(20, {"train": 2.0})
    whole = (tmp_path / METRICS).read_bytes()
    assert len(whole) // 2 == 27
    (tmp_path / METRICS).write_bytes(whole[:-cut])
    assert steps(tmp_path) == [10]
    MetricsFile(tmp_path, 20).metrics(30, {"train": 3.0})
    assert steps(tmp_path) == [10, 30]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "x"}', "7", "\ufffd"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS).write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n', "utf-8")
    before = (tmp_path / METRICS).read_bytes()
    with pytest.raises(CharLMError, match=rf"line 2 of .*{METRICS} is damaged"):
        Watchers(Settings(), tmp_path, 2)
    assert (tmp_path / METRICS).read_bytes() == before


def test_samples_are_kept_to_the_byte(tmp_path: Path) -> None:
    watchers = Watchers(Settings(), tmp_path)
    for step, text in ((100, "\r\nT\u00e9xt\ufffd\n"), (123456789, "")):
        watchers.sample(step, text)
    samples = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert samples == {
        "step-00000100.txt": b"\r\nT\xc3\xa9xt\xef\xbf\xbd\n",
        "step-123456789.txt": b"",
    }


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    watchers = Watchers(Settings(), tmp_path)
    (tmp_path / "samples").touch()
    with pytest.raises(CharLMError, match=rf"cannot write to {tmp_path}: File exists"):
        watchers.sample(1, "text")
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).mkdir()
    with pytest.raises(CharLMError, match=rf"cannot write to {tmp_path}: Is a directory"):
        watchers.metrics(1, {})
    (tmp_path / "file").touch()
    with pytest.raises(CharLMError, match=rf"cannot write to {tmp_path}/file: File exists"):
        Watchers(Settings(), tmp_path / "file")


def test_all_are_closed_even_when_one_fails(tmp_path: Path) -> None:
    closed = []

    class Failing(Watcher):
        def close(self) -> None:
            closed.append(self)
            raise OSError("the service is gone")

    watchers = Watchers(Settings(), tmp_path)
    watchers.all = [Failing(), Failing()]
    with pytest.raises(CharLMError, match="the service is gone"):
        watchers.close()
    assert len(closed) == 2


def pictures(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("loss.*")}


def test_the_curve_is_drawn_once_a_minute_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    drawn: list[list[int]] = []
    monkeypatch.setattr(curve, "draw", lambda run, lines: drawn.append([line["step"] for line in lines]))
    watchers = Watchers(Settings(), tmp_path)
    for step, seconds in ((1, 0.0), (2, 59.0), (3, 60.0), (4, 61.0), (5, 119.0), (6, 120.0)):
        now = 1000.0 + seconds
        watchers.metrics(step, {"train": 1.0})
    assert drawn == [[1, 2, 3], [1, 2, 3, 4, 5, 6]]
    watchers.metrics(7, {"train": 1.0})
    watchers.close()
    assert drawn[2:] == [[1, 2, 3, 4, 5, 6, 7]]


LINES: list[dict[str, Any]] = [
    {"step": s, "train": 3 - s / 50, "learning_rate": 1e-3 * (1 - s / 100)} for s in range(20, 100, 20)
] + [{"step": 80, "train": 1.5, "val": 2.0}, {"step": 100, "train": 1.0, "val": 2.5, "learning_rate": None}]


def test_the_curve_shows_bits_by_step() -> None:
    figure = curve._figure("run", LINES)
    losses, rate = figure.axes
    lines = {line.get_color(): line for line in losses.lines}
    train, val = lines[curve.LOSSES["train"][1]], lines[curve.LOSSES["val"][1]]
    bit = math.log(2)
    assert list(train.get_xdata()) == [20, 40, 60, 80, 100]
    assert list(train.get_ydata()) == [2.6 / bit, 2.2 / bit, 1.8 / bit, 1.5 / bit, 1.0 / bit]
    assert list(val.get_xdata()) == [80, 100]
    assert list(val.get_ydata()) == [2.0 / bit, 2.5 / bit]
    labels = {text.get_text() for text in losses.texts}
    assert labels == {"training 1.443", "validation 3.607", "best 2.885\nat step 80"}
    assert list(rate.lines[0].get_xdata()) == [20, 40, 60, 80]
    low, high = losses.get_ylim()
    assert low < 1.0 / bit and high > 2.6 / bit


def test_labels_of_close_losses_do_not_touch() -> None:
    lines = [{"step": s, "train": 4 - s / 100, "val": 4.001 - s / 100} for s in range(0, 300, 100)]
    axes = curve._figure("run", lines).axes
    assert len(axes) == 1  # no learning rate
    heights = sorted(text.xy[1] for text in axes[0].texts)  # type: ignore[attr-defined]
    low, high = axes[0].get_ylim()
    assert heights[1] - heights[0] >= 0.05 * (high - low)


@pytest.mark.parametrize(
    "lines",
    [
        LINES,
        [{"step": 0, "val": 1.0}],
        [{"step": 5, "train": 1.0, "learning_rate": 0.1}],
        [{"step": 1, "train": 2.0, "val": None}, {"step": 2}],
    ],
    ids=["a run", "one loss", "a flat rate", "gaps"],
)
def test_pictures_are_pictures(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    curve.draw(tmp_path, lines)
    found = pictures(tmp_path)
    assert found.keys() == {"loss.png", "loss.svg"}
    assert found["loss.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(found["loss.png"][16:20]) == 1200
    assert xml.fromstring(found["loss.svg"]).tag.endswith("svg")
    curve.draw(tmp_path, lines)
    assert pictures(tmp_path) == found


def test_no_losses_make_no_picture(tmp_path: Path) -> None:
    for lines in ([], [{"step": 3, "learning_rate": 0.1, "val": None}]):
        curve.draw(tmp_path, lines)
    Watchers(Settings(), tmp_path).close()
    assert not pictures(tmp_path)


def test_without_matplotlib_a_line_tells_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    watchers = Watchers(Settings(), tmp_path, say=said.append)
    watchers.metrics(1, {"train": 1.0})
    watchers.close()
    assert said == ["no picture of the losses, which needs matplotlib: pip install fusedlstm[plot]"]
    assert steps(tmp_path) == [1] and not pictures(tmp_path)


@pytest.mark.parametrize(
    ("settings", "module", "package"),
    [(TENSORBOARD, "torch.utils.tensorboard", "tensorboard"), (WANDB, "wandb", "wandb")],
)
def test_a_missing_package_is_named_before_anything_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings, module: str, package: str
) -> None:
    MetricsFile(tmp_path).metrics(10, {})
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"--{package} needs the package {package}: pip install fusedlstm\[watch\]"
    with pytest.raises(CharLMError, match=message):
        Watchers(settings, tmp_path, 5)
    assert steps(tmp_path) == [10]


def test_tensorboard_gets_bits_and_samples(tmp_path: Path) -> None:
    reason = "needs the package tensorboard"
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=reason)
    first = Watchers(TENSORBOARD, tmp_path)
    first.metrics(10, {"step": 10, "train": math.log(2), "val": 2 * math.log(2), "learning_rate": 0.25})
    first.sample(10, "a <b>\n\n# c")
    first.metrics(20, {"train": 5.0})
    first.close()
    second = Watchers(TENSORBOARD, tmp_path, 10)
    second.metrics(15, {"train": 3 * math.log(2)})
    second.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    read = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert read == {
        "bits_per_char/train": [(10, 1.0), (15, 3.0)],  # not what was told of step 20
        "bits_per_char/val": [(10, 2.0)],
        "learning_rate": [(10, 0.25)],
    }
    (sample,) = events.Tensors("sample/text_summary")
    assert sample.tensor_proto.string_val == [b"    a <b>\n    \n    # c"]


class FakeWandb(ModuleType):
    """As much of wandb as is called."""

    class Error(Exception):
        pass

    def __init__(self, error: str = "") -> None:
        super().__init__("wandb")
        self.error, self.told = error, list[Any]()

    def init(self, **options: Any) -> FakeWandb:
        self.told.append(options)
        if self.error:
            raise self.Error(self.error)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.told.append("finish")

    def Html(self, text: str) -> str:
        return text


@pytest.mark.parametrize("mode", [None, "offline"])
def test_wandb_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_MODE", mode) if mode else monkeypatch.delenv("WANDB_MODE", raising=False)
    watchers = Watchers(WANDB, tmp_path / "new")
    watchers.metrics(10, {"step": 10, "val": 2 * math.log(2), "seconds": 3.0})
    watchers.sample(10, "a <b>")
    watchers.close()
    options, *told = fake.told
    assert options["mode"] == mode
    assert options["dir"] == str(tmp_path / "new") and options["name"] == options["group"] == "new"
    assert options["config"]["rnn_size"] == 7
    assert told == [
        (10, {"bits_per_char/val": 2.0, "seconds": 3.0}),
        (10, {"sample": "<pre>a &lt;b&gt;</pre>"}),
        "finish",
    ]


def test_a_wandb_that_refuses_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("no\nAPI key"))
    with pytest.raises(CharLMError, match=r"--wandb does not start: no API key; .* set WANDB_MODE=offline"):
        Watchers(WANDB, tmp_path)
