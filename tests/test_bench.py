"""`fusedlstm bench`: checks before it times, shows what ran, draws, and refuses bad values in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fusedlstm
from fusedlstm import bench
from fusedlstm.cli import main

TINY = [
    "bench", "--device", "cpu", "--hidden-size", "8", "--batch-size", "2", "--seq-length", "9",
    "--input-size", "3", "--seconds", "0.05",
]  # fmt: skip
SIGNATURES = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


class Wrong(fusedlstm.LSTM):
    """An LSTM that is off by a thousandth."""

    def forward(self, *args: Any) -> Any:
        y, states = super().forward(*args)
        assert isinstance(y, torch.Tensor)
        return y * 1.001, states


@pytest.mark.parametrize(
    ("options", "groups"),
    [
        ([], 2),
        (["--mode", "infer", "--bidirectional", "--num-layers", "2"], 1),
        (["--mode", "forward", "--dtype", "bfloat16"], 1),
        (["--dtype", "float64"], 2),
    ],
)
def test_a_shape_is_checked_and_timed(
    options: list[str], groups: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *options]) == 0
    shown = capsys.readouterr().out
    assert "H=8 L=" in shown and "B=2 T=9 I=3" in shown and f"torch {torch.__version__}" in shown
    assert shown.count("against float64") == groups
    figures = {
        name: [float(cell) for cell in re.findall(r"[\d.]+", shown.split(f"│ {name} ")[1].splitlines()[0])]
        for name in ("fusedlstm", "torch.nn.LSTM")
    }
    for runs, p20, median, p80, step_us in figures.values():
        assert runs >= 5 and 0 < p20 <= median <= p80
        assert step_us == pytest.approx(1e3 * median / 9, abs=0.1)
    ratio = float(re.search(r"fusedlstm is ([\d.]+) times", shown)[1])  # type: ignore[index]
    expected = figures["torch.nn.LSTM"][2] / figures["fusedlstm"][2]
    assert ratio == pytest.approx(expected, rel=0.1, abs=0.01)  # of medians that are shown to 1 us


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ([], "fusedlstm runs on cpu, .* engine; --backend auto:"),
        (["--backend", "torch"], "fusedlstm runs on torch; --backend torch:"),
        (["--backend", "eager"], "fusedlstm runs on eager; --backend eager:"),
    ],
)
def test_it_says_what_ran_and_why(options: list[str], runs: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, *options]) == 0
    shown = capsys.readouterr().out
    assert re.search(runs, shown)
    reasons = dict(re.findall(r"^  (\w+) +(.+)$", shown, re.MULTILINE))
    assert reasons.keys() == fusedlstm.backends().keys()
    assert [name for name, reason in reasons.items() if reason == "runs"] == [*options[1:], "cpu"][:1]


def test_torch_against_itself_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = "both rows are torch's own LSTM"
    assert main([*TINY, "--backend", "torch"]) == 0 and words in capsys.readouterr().out
    assert main(TINY) == 0 and words not in capsys.readouterr().out


def test_a_difference_within_the_spread_is_called_open() -> None:
    fast, slow, wide = [1.0, 1.1, 1.2], [2.0, 2.1, 2.2], [0.5, 1.0, 4.0]
    for ours, torchs, times in ((fast, slow, "1.91"), (slow, fast, "0.52")):
        words = f"fusedlstm is {times} times as fast as torch.nn.LSTM here"
        assert bench.verdict({bench.OURS: ours, bench.TORCH: torchs}) == words
    for a, b in ((fast, wide), (wide, fast)):
        assert "overlap" in bench.verdict({bench.OURS: a, bench.TORCH: b})


@pytest.mark.parametrize("suffix", bench.PLOTS)
def test_it_draws(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / f"times{suffix}"
    assert main([*TINY, "--plot", str(file), "--seconds", "10"]) == 0  # on a busy machine too
    assert f"drawn: {file}" in capsys.readouterr().out
    assert file.read_bytes().startswith(SIGNATURES[suffix])
    if suffix == ".svg":  # it has a panel against T
        assert "steps T" in file.read_text()


def test_the_lengths_are_left_out_where_no_time_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    file = tmp_path / "times.svg"
    assert main([*TINY, "--plot", str(file), "--seconds", "1e-6"]) == 0
    assert "no time was left" in capsys.readouterr().out
    assert file.exists() and "steps T" not in file.read_text()


@pytest.mark.parametrize("mode", ["infer", "forward+backward"])
def test_a_wrong_result_has_no_time(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "LSTM", Wrong)
    with pytest.raises(SystemExit, match="the result is wrong, no time was taken"):
        main([*TINY, "--mode", mode, "--plot", str(tmp_path / "a.svg")])
    shown = capsys.readouterr().out
    assert "against float64" in shown and "ms" not in shown and "times as fast" not in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden-size", "0"], "--hidden-size must be a whole number, at least 1, got 0"),
        (["--input-size", "-3"], "--input-size must be a whole number, at least 1, got -3"),
        (["--seconds", "nan"], "--seconds must be a finite number above 0, got nan"),
        (["--device", "cuda:99"], "--device must be cpu, or cuda where torch has a GPU, got 'cuda:99'"),
        (["--device", "meta"], "--device must be cpu, or cuda where torch has a GPU, got 'meta'"),
        (["--backend", "abacus"], "--backend must be one of auto, "),
        (
            ["--backend", "cpu", "--dtype", "float16"],
            "--backend='cpu' cannot serve this call: serves float32",
        ),
        (["--plot", "times.txt"], "--plot must be a file that ends in .png, .svg, .pdf, got 'times.txt'"),
        (["--plot", "nowhere/times.png"], "--plot must be in a folder that exists"),
        (["--hidden-size", "10000000000"], "needs more memory than there is: take a smaller one"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, *options]) == 2
    error = capfd.readouterr().err
    assert error.startswith("fusedlstm: ") and message in error and error.count("\n") == 1


def test_without_matplotlib_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    assert main([*TINY, "--plot", "times.png"]) == 2
    assert "pip install 'fusedlstm[plot]'" in capfd.readouterr().err
