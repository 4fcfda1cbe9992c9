"""Instruction counts: what is summed, that they repeat, and what is said without valgrind."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

# Last: an installed fusedlstm stays the one that is tested.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks import callgrind
from benchmarks.shapes import Row
from fusedlstm import _C

# As callgrind writes it; the callee's inclusive cost stands below its calls= line.
PART = """\
part: 2

positions: line
events: Ir

ob=/lib/libc.so.6
fl=???
fn=memset
0 1000

ob=/x/_C.so
fl=???
fn=0x0000000000029800
0 20
cob=/lib/libc.so.6
cfi=???
cfn=memset
calls=3 0
0 1000
7 4
cfn=0x0000000000029900
calls=1 0
0 300
fi=cell.h
12 6

fn=0x0000000000029900
0 300

ob=/usr/bin/python
fl=ceval.c
fn=eval
8 50
cob=/x/_C.so
cfn=0x0000000000029800
calls=1 0
0 1330

totals: 2380
"""
needs_valgrind = pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")


def test_only_the_files_own_instructions_are_summed() -> None:
    assert callgrind.self_cost(PART, "/x/_C.so") == 20 + 4 + 6 + 300
    assert callgrind.self_cost(PART, "/lib/libc.so.6") == 1000
    assert callgrind.self_cost(PART, "/x/other.so") == 0


def test_flops_of_the_backward_are_twice_the_forwards() -> None:
    row = Row("x", H=3, L=1, B=5, T=7, I=11, needs_dx=True)
    assert callgrind.flops(row, "forward") == 2 * 35 * 12 * (11 + 3)
    assert callgrind.flops(row, "backward") == 2 * callgrind.flops(row, "forward")


@needs_valgrind
def test_counts_repeat_and_are_of_one_call() -> None:
    row = Row("short", H=32, L=1, B=16, T=8, I=32, needs_dx=True)
    rows = [row, replace(row, name="long", T=16)]
    found = callgrind.count(rows)
    assert found == callgrind.count(rows)
    isas = {values["isa"] for values in found.values()}
    assert isas <= set(_C.available_engines()) and "portable" in isas
    assert len(found) == 4 * len(isas)
    for isa in isas:
        for name in ("forward", "backward"):
            short, long = (found[f"{length}, {name}, {isa}"] for length in ("short", "long"))
            assert long["per_step"] == pytest.approx(short["per_step"], rel=0.25)  # less is packed a step
            assert short["per_flop"] == short["per_pass"] / callgrind.flops(row, name)
            assert 1 / 32 < short["per_flop"] < 4  # at best 16 lanes multiply and add at once


def test_without_valgrind_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        callgrind.main(tmp_path / "a.json")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "callgrind: valgrind is not installed: get it from your distribution\n"
    assert not (tmp_path / "a.json").exists()
