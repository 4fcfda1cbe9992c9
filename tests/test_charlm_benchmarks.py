"""The trainer's and the sampler's benchmarks: what runs beside ours, and no time for a wrong text."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import bench_sample, bench_train, tables

NET = bench_sample.Net(H=16, L=2, V=11, B=3)


@pytest.mark.parametrize(("layers", "width"), [(4, 32), (5, 64)])
def test_the_size_of_the_transformer_is_counted_right(layers: int, width: int) -> None:
    net = bench_train.Net(H=16, L=2, B=4, T=8, V=65)
    assert net.gpt_parameters(layers, width) == bench_train.count(bench_train.GPT(65, 8, layers, width))


def test_the_transformer_is_about_as_large_as_the_lstm() -> None:
    net = bench_train.Net(H=128, L=2, B=4, T=8, V=65)
    gpt = net.gpt()
    assert bench_train.count(gpt) == pytest.approx(bench_train.count(net.ours()), rel=0.1)


def test_the_transformer_sees_no_later_character() -> None:
    torch.manual_seed(0)
    gpt = bench_train.GPT(11, 9, 4, 32)
    ids = torch.randint(11, (9, 2))
    changed = torch.cat((ids[:5], (ids[5:] + 1) % 11))
    with torch.no_grad():
        logits, others = gpt(ids)[0], gpt(changed)[0]
    assert torch.allclose(logits[:5], others[:5], atol=1e-5)
    assert (logits[5:] - others[5:]).abs().amin(dim=(1, 2)).max() > 0
    assert torch.allclose(gpt(ids[:5])[0], logits[:5], atol=1e-5)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("float32",)])
def test_all_train_side_by_side(dtypes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "multiplies", lambda dtype, device: dtype in dtypes)
    found = bench_train.measure(bench_train.Net(H=16, L=1, B=4, T=8, V=65), steps=3)
    names = {f"{who} {dtype}" for who in ("ours", "torch", "gpt") for dtype in dtypes}
    assert set(found["ms"]) == set(found["chars_per_s"]) == set(found["losses"]) == names
    assert set(found["auto"]) == set(dtypes)
    speed = 1e3 * 4 * 8 / found["ms"]["gpt float32"]["p50"]
    assert found["chars_per_s"]["gpt float32"] == pytest.approx(speed)
    assert "transformer (4 layers of width 32," in tables.train_words(found)


def test_ours_is_its_own_backend_on_every_device() -> None:
    net = bench_train.Net(H=16, L=1, B=4, T=8, V=65)
    assert {device: net.ours(device).lstm.backend for device in bench_train.DTYPES} == {
        "cpu": "cpu",
        "cuda": "triton",
    }
    assert list(bench_train.settings("cuda")) == ["as it comes", "cuDNN off"]


def test_losses_that_differ_have_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_train, "AGREE", dict.fromkeys(bench_train.AGREE, -1.0))
    found = bench_train.measure(bench_train.Net(H=16, L=1, B=4, T=8, V=65), steps=2)
    assert not {"ms", "chars_per_s", "ratio"} & found.keys()
    assert "losses disagree: no time" in tables.train({"1x16": found})


def test_the_sampler_is_timed_once_its_text_is_right() -> None:
    found = bench_sample.measure(NET, seconds=0.01, characters=4)
    assert found["parity"] == {"ok": True, "wrong": 0, "compared": found["parity"]["compared"]}
    assert found["parity"]["compared"] >= bench_sample.CHECKED
    generators = {f"generate {precision}" for precision in bench_sample.PRECISIONS}
    assert set(found["ms"]) == {"ours", "torch", "torch_plain", "numpy"} | generators
    for name, ms in found["ms"].items():
        assert found["chars_per_s"][name] == pytest.approx(1e3 * 3 * 4 / ms["p50"])
    torchs = min(found["ms"][name]["p50"] for name in ("torch", "torch_plain"))
    assert found["ratio"] == pytest.approx(torchs / found["ms"]["ours"]["p50"])
    assert found["ratios"]["generate int8"] == pytest.approx(torchs / found["ms"]["generate int8"]["p50"])
    assert "generate bfloat16 " in bench_sample.line(found)


@pytest.mark.parametrize("name", ["ours", "generate float32", "generate bfloat16", "generate int8"])
def test_a_wrong_text_has_no_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bench_sample.contenders

    def wrong(net: Any, ours: Any, torchs: Any, device: str) -> dict[str, bench_sample.Contender]:
        changed = copy.deepcopy(ours)
        with torch.no_grad():
            changed.lstm.weight_hh_l1.mul_(1.5)
        return right(net, ours, torchs, device) | {name: right(net, changed, torchs, device)[name]}

    monkeypatch.setattr(bench_sample, "contenders", wrong)
    found = bench_sample.measure(NET)
    assert not found["parity"]["ok"] and found["parity"]["wrong"] > 0
    assert "ms" not in found and "WRONG TEXT, no time" in bench_sample.line(found)


def test_a_text_of_ties_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_sample, "TIE", {"cpu": 2.0, "int8": 2.0})  # no margin is that wide
    assert bench_sample.measure(NET)["parity"] == {"ok": False, "wrong": 0, "compared": 0}


@pytest.mark.parametrize("name", ["ours", "generate float32"])
def test_every_stream_goes_its_own_way(name: str) -> None:
    text = bench_sample.contenders(NET, *bench_sample.models(NET, "cpu"), "cpu")[name].text
    texts = [bench_sample.taken(text(bench_sample.first(NET), 0.8, 5), 20) for _ in range(2)]
    assert texts[0].shape == (20, 3) and not torch.equal(texts[0][:, 0], texts[0][:, 1])
    assert torch.equal(*texts)


def test_what_a_precision_costs_is_measured_on_one_text() -> None:
    found = bench_sample.losses(steps=20, H=32, held_out=50)
    assert set(found) == {"module", *bench_sample.PRECISIONS}
    assert found["float32"] == pytest.approx(found["module"], rel=1e-5)
    for precision in ("bfloat16", "int8"):
        assert found[precision] == pytest.approx(found["module"], rel=0.02)
        assert found[precision] != found["float32"]


def test_a_generator_that_refuses_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bench_sample.generator_of

    def refuses(model: Any, B: int, precision: str) -> Any:
        if precision == "int8":
            raise ValueError("the kernel takes no int8")
        return right(model, B, precision)

    monkeypatch.setattr(bench_sample, "generator_of", refuses)
    found = bench_sample.contenders(NET, *bench_sample.models(NET, "cpu"), "cpu")
    assert {"generate float32", "generate bfloat16"} < set(found) and "generate int8" not in found
    assert f"{NET.name}: generate int8 skipped: the kernel takes no int8" in capsys.readouterr().out
