"""What the CUDA kernels compile to, without a GPU: the budget, and that the committed record is current."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cuda_aot

Row = dict[str, Any]
GPU = "sm_90"
RECORD = json.loads(cuda_aot.RECORD.read_text())
REGISTERS = 65536  # of a multiprocessor, for the one block that is on it
THREAD = 255  # registers at most
needs_nvcc = pytest.mark.skipif(cuda_aot.missing() is not None, reason=str(cuda_aot.missing()))
needs_disassembler = pytest.mark.skipif(
    cuda_aot.disassembler() is None, reason="no cuobjdump: put it on the PATH, or install triton"
)
# In a process of its own, since it stands in for fusedlstm._cuda.
PROGRAM = f"import json; from benchmarks import cuda_aot; print(json.dumps(cuda_aot.report(['{GPU}'])))"
BACKWARD = "_ZN9fusedlstm3gpu15backward_kernelINS0_6Tf32x3ENS0_12GridBackwardELi4ELi2ELi8ELi256EEEv"
FORWARD = "_ZN9fusedlstm3gpu14forward_kernelINS0_4Bf16ENS0_12BlockForwardELi4ELi1ELi256EEEv"
SAID = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{BACKWARD}' for 'sm_90'
ptxas info    : Function properties for {BACKWARD}
    24 bytes stack frame, 20 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 226 registers, used 16 barriers, 24 bytes cumulative stack size, 128 bytes smem
ptxas info    : Compile time = 3182.487 ms
ptxas info    : Compiling entry function '{FORWARD}' for 'sm_90'
ptxas info    : Function properties for {FORWARD}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 151 registers
"""


@pytest.fixture(scope="module")
def compiled() -> Row:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=cuda_aot.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: Row = json.loads(done.stdout)
    return found


def named(rows: list[Row], *figures: str) -> dict[str, list[int]]:
    """Figures of kernels, by what tells these apart."""
    return {" ".join(str(row[key]) for key in cuda_aot.KERNEL): [row[f] for f in figures] for row in rows}


@needs_nvcc
def test_nothing_spills(compiled: Row) -> None:
    found = named(compiled["kernels"], "spill_store_bytes", "spill_load_bytes", "stack_bytes")
    assert found and not {name: figures for name, figures in found.items() if any(figures)}


@needs_nvcc
def test_a_block_has_its_registers(compiled: Row) -> None:
    found = named(compiled["kernels"], "registers", "threads")
    beyond = {
        name: n for name, (n, threads) in found.items() if n > min(THREAD, REGISTERS // threads // 8 * 8)
    }
    assert found and not beyond


@needs_nvcc
@needs_disassembler
def test_products_are_made_by_matrix_instructions_and_nothing_lies_in_local_memory(compiled: Row) -> None:
    found = named(compiled["kernels"], "mma", "local")
    assert found and not {name: n for name, n in found.items() if n[0] == 0 or n[1] > 0}


@needs_nvcc
def test_the_committed_kernels_are_up_to_date(compiled: Row) -> None:
    if RECORD["nvcc"] != compiled["nvcc"]:
        pytest.skip(f"the committed rows are of nvcc {RECORD['nvcc']}, this is {compiled['nvcc']}")
    committed = [row for row in RECORD["kernels"] if row["gpu"] == GPU]
    if cuda_aot.disassembler() is None:
        committed = [{k: v for k, v in row.items() if k not in cuda_aot.INSTRUCTIONS} for row in committed]
    assert committed == compiled["kernels"], "run python -m benchmarks.cuda_aot"


@needs_nvcc
def test_the_committed_plans_are_up_to_date(compiled: Row) -> None:
    assert RECORD["plans"] == compiled["plans"], "run python -m benchmarks.cuda_aot"


@needs_nvcc
def test_the_committed_writers_are_up_to_date(compiled: Row) -> None:
    assert RECORD["texts"] == compiled["texts"], "run python -m benchmarks.cuda_aot"
    if RECORD["nvcc"] != compiled["nvcc"]:
        pytest.skip(f"the committed rows are of nvcc {RECORD['nvcc']}, this is {compiled['nvcc']}")
    committed = [row for row in RECORD["writers"] if row["gpu"] == GPU]
    if cuda_aot.disassembler() is None:
        committed = [{k: v for k, v in row.items() if k not in cuda_aot.INSTRUCTIONS} for row in committed]
    assert committed == compiled["writers"], "run python -m benchmarks.cuda_aot"


@needs_nvcc
def test_a_kernel_that_writes_has_its_registers_and_spills_nothing(compiled: Row) -> None:
    check_writers(compiled["writers"])


def check_writers(writers: list[Row]) -> None:
    assert len(writers) == len({(row["precision"], row["streams"]) for row in writers}) == 6
    for row in writers:
        assert row["registers"] <= REGISTERS // row["threads"], row
        spilled = [row[key] for key in ("spill_store_bytes", "spill_load_bytes", "stack_bytes")]
        assert not any(spilled) and not row.get("local"), row


@needs_nvcc
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("int unused;", "declared but never referenced"),
        ("no_such_function();", "undefined"),
    ],
)
def test_a_warning_ends_the_compilation(fault: str, words: str, tmp_path: Path) -> None:
    source, target = tmp_path / "kernel.cu", tmp_path / "kernel.o"
    nvcc = cuda_aot.compiler()
    assert nvcc is not None
    source.write_text("__global__ void kernel() {}\n")
    assert "kernel" in "".join(cuda_aot.usage(cuda_aot.compiled(nvcc, source, GPU, target)))
    source.write_text(f"__global__ void kernel() {{ {fault} }}\n")
    with pytest.raises(RuntimeError, match=words):
        cuda_aot.compiled(nvcc, source, GPU, target)


def test_without_nvcc_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    with pytest.raises(SystemExit, match="no nvcc: put it on the PATH"):
        cuda_aot.report()


def test_usage_is_read_from_the_assemblers_words() -> None:
    figures = (
        "stack_bytes",
        "spill_store_bytes",
        "spill_load_bytes",
        "registers",
        "barriers",
        "shared_bytes",
    )
    assert cuda_aot.usage(SAID) == {
        BACKWARD: dict(zip(figures, (24, 20, 12, 226, 16, 128), strict=True)),
        FORWARD: dict(zip(figures, (0, 0, 0, 151, 0, 0), strict=True)),
    }
    for name, values in {
        BACKWARD: ("backward", "grid", "tf32x3", 4, 2, 8, 256),
        FORWARD: ("forward", "block", "bfloat16", 4, 0, 1, 256),
    }.items():
        assert cuda_aot.described(name) == dict(zip(cuda_aot.KERNEL, values, strict=True))
    writer = "_ZN9fusedlstm3gpu20lstm_generate_kernelINS0_4Bf16ELi8ELi512EEEvNS0_12GenerateArgsE"
    assert cuda_aot.described(writer) == {
        "pass": "generate", "precision": "bfloat16", "streams": 8, "threads": 512
    }  # fmt: skip
    assert cuda_aot.described("_Z6kernelv") is None


@pytest.mark.parametrize("gpu", cuda_aot.CLEAN)
def test_no_committed_kernel_spills(gpu: str) -> None:
    found = named(
        [row for row in RECORD["kernels"] if row["gpu"] == gpu],
        "spill_store_bytes",
        "spill_load_bytes",
        "local",
    )
    assert found and not {name: figures for name, figures in found.items() if any(figures)}


@pytest.mark.parametrize("gpu", cuda_aot.CLEAN)
def test_no_committed_kernel_that_writes_spills(gpu: str) -> None:
    check_writers([row for row in RECORD["writers"] if row["gpu"] == gpu])


@pytest.mark.parametrize("gpu", cuda_aot.CARDS)
def test_plans_fit_in_shared_memory(gpu: str) -> None:
    _, limit, _ = cuda_aot.CARDS[gpu]
    sizes = [row["plan"]["shared_bytes"] for row in RECORD["plans"] if row["gpu"] == gpu and row["plan"]]
    assert sizes and min(sizes) > 0 and max(sizes) <= limit


def test_planned_kernels_are_among_the_compiled() -> None:
    """The module tells of the former, the mangled names of the latter."""
    compiled = {tuple(row[key] for key in ("gpu", *cuda_aot.KERNEL)) for row in RECORD["kernels"]}
    planned = {
        tuple((row | row["plan"]["kernel"])[key] for key in ("gpu", *cuda_aot.KERNEL))
        for row in RECORD["plans"]
        if row["plan"]
    }
    assert planned and not planned - compiled


def test_a_predicted_step_is_the_sum_of_its_terms() -> None:
    for row in RECORD["plans"]:
        if row["plan"] is None:
            continue
        terms, rounds = dict(row["plan"]["terms"]), row["plan"]["rounds"]
        overlapped = max(terms.pop("product_us"), terms.pop("shared_memory_us"))
        assert row["plan"]["step_us"] == pytest.approx((overlapped + sum(terms.values())) * rounds), row


def test_a_predicted_character_is_the_sum_of_its_terms() -> None:
    assert any(row["plan"] for row in RECORD["texts"])
    for row in RECORD["texts"]:
        if row["plan"] is None:
            continue
        terms = dict(row["plan"]["terms"])
        layers, own, meet = (terms.pop(name) for name in ("layers", "own_us", "meet_us"))
        waited = layers * max(own, meet) + meet
        assert row["plan"]["character_us"] == pytest.approx(waited + sum(terms.values())), row


def test_the_document_is_of_the_committed_record() -> None:
    assert cuda_aot.PAGE.read_text() == cuda_aot.document(RECORD), "run python -m benchmarks.cuda_aot"
