"""Others' LSTMs in the benchmark: the same weights give the same result, and who cannot run says why."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_layer, parity, results, rivals
from benchmarks.contenders import CONTENDERS, Contender, Pass
from benchmarks.rivals import RIVALS, FlashRNN, Haste, Loop, NumPy
from benchmarks.shapes import FORWARD, INFER, Row

TINY = Row("2x128", H=8, L=2, B=2, T=3, I=4, needs_dx=True)
BOTH = replace(TINY, bidirectional=True)


class FakeHaste(nn.Module):
    """haste_pytorch.LSTM by its documentation: kernels in columns, gates i, g, f, o, forget bias 1."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(input_size, 4 * hidden_size))
        self.recurrent_kernel = nn.Parameter(torch.empty(hidden_size, 4 * hidden_size))
        self.bias = nn.Parameter(torch.empty(4 * hidden_size))

    def forward(self, x: Tensor) -> Any:
        h = c = x.new_zeros(x.shape[1], len(self.recurrent_kernel))
        ys = []
        for x_t in x:
            i, g, f, o = (x_t @ self.kernel + h @ self.recurrent_kernel + self.bias).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        return torch.stack(ys), (h[None], c[None])


def fake_flashrnn(Wx: Tensor, R: Tensor, b: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """flashrnn.flashrnn by its documentation: R [gates, heads, new, old], states [2, T, B, heads, units]."""
    asked = vars(config)
    assert (asked["function"], asked["input_shape"], asked["output_shape"]) == ("lstm", "TBGHD", "STBHD")
    assert asked["batch_size"] == Wx.shape[1] and asked["head_dim"] == R.shape[2] and asked["num_heads"] == 1
    h = c = Wx.new_zeros(Wx.shape[1], 1, R.shape[2])
    states = []
    for Wx_t in Wx:
        i, f, g, o = (Wx_t + torch.einsum("ghdp,bhp->bghd", R, h) + b).unbind(1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(torch.stack((h, c)))
    return torch.stack(states, 1), states[-1][:, None]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages, in a form that runs on a CPU."""
    haste, flash = types.ModuleType("haste_pytorch"), types.ModuleType("flashrnn")
    haste.LSTM = FakeHaste  # type: ignore[attr-defined]
    flash.FlashRNNConfig, flash.flashrnn = types.SimpleNamespace, fake_flashrnn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "haste_pytorch", haste)
    monkeypatch.setitem(sys.modules, "flashrnn", flash)


@pytest.mark.parametrize("lstm", [Loop, NumPy, FlashRNN, Haste])
@pytest.mark.parametrize("row", [TINY, BOTH, replace(TINY, mode=INFER), replace(TINY, mode=FORWARD)])
def test_the_same_weights_give_the_same_result(lstm: type, row: Row, packages: None) -> None:
    found = parity.check(row, CONTENDERS | {"rival": Contender("", lstm)})
    assert found["ok"] and not found["wrong"] and found["outputs"]["rival"] < 1e-6
    assert ("rival" in found.get("gradients", {})) == (row.mode == "forward+backward")


def test_a_wrong_rival_has_a_reason_and_no_time(packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "_igfo", lambda w: w)
    found = bench_layer.measure(TINY, CONTENDERS | {"haste": Contender("", Haste)}, quick=True)
    assert found["parity"]["ok"] and "ms" in found and "haste" not in found["ms"]
    assert found["skipped"]["haste"].startswith("wrong result: outputs are off by ")


class Broken(nn.LSTM):
    def forward(self, *args: Any) -> Any:
        raise KeyError("no such kernel\nand more")


class BrokenWhole(Loop):
    """Runs a few steps, but not all of them."""

    def forward(self, x: Tensor) -> Any:
        if len(x) > 2:
            raise MemoryError
        return super().forward(x)


def test_one_that_fails_or_refuses_has_a_reason() -> None:
    mine = {
        "broken": Contender("", Broken),
        "later": Contender("", BrokenWhole),
        "no": Contender("", Broken, refuses=lambda row: f"not at {row.name}"),
    }
    found = bench_layer.measure(TINY, CONTENDERS | mine, quick=True)
    assert not mine.keys() & found["ms"].keys() and found["ms"].keys() == CONTENDERS.keys()
    assert found["skipped"]["broken"] == "failed: KeyError: 'no such kernel\\nand more'"
    assert found["skipped"]["later"] == "failed: MemoryError: it said nothing"
    assert found["skipped"]["no"] == "not at 2x128"


def test_ours_that_fails_is_told_and_spoils_no_other_row(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "a.json"
    mine = CONTENDERS | {"ours": Contender("", BrokenWhole)}
    rows = [replace(TINY, mode=INFER), replace(TINY, mode=INFER, name="short", T=1)]
    bench_layer.run(rows, out, results.machine(), True, mine)
    layer = json.loads(out.read_text())["layer"]
    assert layer["2x128"]["parity"] == {"ok": False, "why": "failed: MemoryError: it said nothing"}
    assert "ms" in layer["short"] and "PARITY FAILED, no time" in capsys.readouterr().out


def test_ours_that_refuses_is_not_called_wrong(tmp_path: Path, capsys: Any) -> None:
    mine = CONTENDERS | {"ours": replace(CONTENDERS["ours"], refuses=lambda row: "too wide")}
    bench_layer.run([TINY], tmp_path / "a.json", results.machine(), True, mine)
    assert "not measured: too wide" in capsys.readouterr().out
    assert "parity" not in json.loads((tmp_path / "a.json").read_text())["layer"]["2x128"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_packages_for_gpus_are_refused_on_a_cpu() -> None:
    for name in ("flashrnn", "haste"):
        assert all(RIVALS[on][name].refuses(TINY) == "its kernels need a GPU" for on in RIVALS)
    assert RIVALS["cuda"]["numpy"].refuses(TINY) and not RIVALS["cpu"]["numpy"].refuses(TINY)


def test_what_is_not_installed_or_served_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    absent = partial(rivals.absent, package="some-package", dtypes=("float64",))
    assert absent("no_such_package", row=TINY) == "is not installed: pip install some-package"
    assert absent("json", row=TINY) == "serves float64, not float32"
    assert absent("json", row=replace(TINY, dtype="float64")) == ""


def test_flashrnn_compiles_in_a_process_that_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals, "absent", lambda *args: "")
    seen: list[Any] = []

    def child(command: list[str], seconds: float, log: Path) -> Any:
        seen.append((command, seconds))
        return types.SimpleNamespace(reason="stopped after 60 s, when its time was up")

    monkeypatch.setattr(rivals.gpu_child, "run", child)
    assert rivals.not_built(TINY) == "stopped after 60 s, when its time was up"
    ((command, seconds),) = seen
    assert "from benchmarks.rivals import main" in command[-1] and seconds == rivals.COMPILE_SECONDS
    ran: list[Any] = []
    monkeypatch.setattr(rivals, "Pass", lambda row, contender: lambda: ran.append((row, contender)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    exec(command[-1])  # the call is one that main takes
    assert ran == [(TINY, RIVALS["cuda"]["flashrnn"])]


def test_torch_compile_is_timed_where_it_compiles_and_else_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = rivals.not_compiled(RIVALS["cpu"]["compile"], TINY)
    assert why == "" or why.startswith("runs as without compiling: ")
    loop = Contender("", Loop, wrap=partial(torch.compile, backend="aot_eager"))
    loop = replace(loop, refuses=partial(rivals.not_compiled, loop))
    monkeypatch.setattr(torch._dynamo.config, "allow_rnn", True)
    row = replace(TINY, mode=INFER, L=1)
    found = bench_layer.measure(row, CONTENDERS | {"compile": loop}, quick=True)
    assert (
        found["skipped"] == {} and found["ms"]["compile"]["p80"] < 1000
    )  # compiling takes longer, uncounted
    monkeypatch.setattr(rivals, "COMPILE_SECONDS", 0.0)
    assert "compiling would take" in rivals.not_compiled(loop, replace(row, T=60))


def test_rivals_are_added_to_rows_that_have_times(tmp_path: Path, capsys: Any) -> None:
    out, machine = tmp_path / "a.json", results.machine()
    wrong = replace(TINY, name="wrong")
    bench_layer.run([TINY], out, machine, True)
    results.add(out, machine, "layer", "wrong", wrong.record() | {"parity": {"ok": False}})
    before = results.load(out)["layer"]
    mine = {
        "loop": Contender("", Loop),
        "slow": Contender("", Loop, setup_seconds=1e9),
        "no": Contender("", Loop, refuses=lambda row: "never"),
    }
    bench_layer.run_rivals(
        [wrong, TINY], out, machine, CONTENDERS, mine, deadline=bench_layer.time.monotonic() + 60
    )
    after = results.load(out)["layer"]
    assert after["wrong"] == before["wrong"]
    assert after["2x128"]["ms"].pop("loop")["p50"] > 0
    assert after["2x128"].pop("skipped") == {"slow": "no time was left for it", "no": "never"}
    assert {k: v for k, v in after["2x128"].items() if k != "date"} == {
        k: v for k, v in before["2x128"].items() if k not in ("date", "skipped")
    }
    assert "loop" in capsys.readouterr().out
    bench_layer.run_rivals([TINY], out, machine, CONTENDERS, mine, deadline=0.0)
    assert "time is up" in capsys.readouterr().out


def test_torchs_worse_setting_is_the_bound_of_others_only(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"torch": 1e-3, "torch_plain": 1e-2, "ours": 5e-3, "rival": 5e-3, "far": 5e-2}
    current: list[str] = []

    class Fixed(Pass):
        def __init__(self, row: Row, contender: Contender, dtype: torch.dtype | None = None) -> None:
            current.append("truth" if dtype else contender.title)

        def results(self) -> Any:
            return {"y": torch.ones(1, dtype=torch.float64) * (1 + errors.get(current[-1], 0.0))}, {}

    monkeypatch.setattr(parity, "Pass", Fixed)
    found = parity.check(TINY, {name: Contender(name, nn.LSTM) for name in errors})
    assert not found["ok"] and found["wrong"].keys() == {"far"}
    assert found["outputs"]["allowed"] == pytest.approx(2e-3, rel=1e-3)
    errors["ours"] = 1e-3
    assert parity.check(TINY, {name: Contender(name, nn.LSTM) for name in errors})["ok"]
