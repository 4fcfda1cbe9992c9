"""The machine that CUDA kernels run on without a GPU: sound kernels pass with every seed, bugs are caught."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import cuda_on_cpu

if reason := cuda_on_cpu.missing():
    pytest.skip(reason, allow_module_level=True)

SEEDS = 24
INVALID_VALUE, INVALID_CONFIGURATION, FAILURE = 1, 9, 719  # of cudaError_t
KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


class Wrong(Exception):
    """A kernel failed, or its result is not what NumPy says."""


class Selftest:
    """Runs a kernel of selftest.cu with a bug, and raises where it fails or its result is wrong."""

    def __init__(self) -> None:
        self.library = cuda_on_cpu.build(Path(cuda_on_cpu.__file__).parent / "selftest.cu")
        self.library.bugs.restype = ctypes.c_char_p
        self.bugs = [name.strip() for name in self.library.bugs().decode().split(",")]

    def guarded(self, tensor: torch.Tensor) -> torch.Tensor:
        return cuda_on_cpu.guarded(self.library, tensor)

    def call(self, kernel: str, *arguments: torch.Tensor | int, bug: str = "none") -> None:
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in arguments]
        code = getattr(self.library, kernel)(*values, self.bugs.index(bug))
        if code:
            raise Wrong(f"error {code}: {self.library.shim_error().decode()}")
        assert self.library.shim_error() == b""

    def reduce(self, bug: str = "none", blocks: int = 3, threads: int = 128) -> None:
        x = self.guarded(torch.arange(blocks * threads).float())
        y = self.guarded(torch.zeros(blocks))
        self.call("reduce", x, y, blocks, threads, 4 * threads, bug=bug)
        check(y, x.view(blocks, threads).sum(1))

    def grid(self, bug: str = "none", blocks: int = 5, steps: int = 6, cooperative: int = 1) -> None:
        h = self.guarded(torch.arange(2 * blocks * 64 * 4, dtype=torch.int32).view(2, blocks, 64, 4))
        flags = self.guarded(torch.zeros(blocks, dtype=torch.int32))
        state = h[0].numpy().copy()
        for step in range(steps):
            state = exchange(state, step)
        self.call("grid", h, flags, blocks, 64, steps, cooperative, bug=bug)
        check(h[steps % 2], state)

    def cluster(self, bug: str = "none", clusters: int = 1, size: int = 4, steps: int = 6) -> None:
        y = self.guarded(torch.zeros(size, 32, 4, dtype=torch.int32))
        state = np.zeros((size, 32, 4), np.int32)
        state[..., 0], state[..., 3] = np.arange(size * 32).reshape(size, 32), 1
        for step in range(steps):
            state = exchange(state, step)
        self.call("cluster", y, clusters * size, size, steps, bug=bug)
        check(y, state)

    def product(self, bug: str = "none", kind: str = "bf16") -> None:
        a, b = (self.guarded(operand(rows, KINDS[kind])) for rows in (16, 8))
        d = self.guarded(torch.zeros(16, 8))
        self.call("product", a, b, d, list(KINDS).index(kind), bug=bug)
        rounded = [round_tf32(x.numpy()) if kind == "tf32" else x.float().numpy() for x in (a, b)]
        expected = np.zeros((16, 8), np.float32)
        for k in range(a.shape[1]):
            expected += np.outer(rounded[0][:, k], rounded[1][:, k])
        check(d, expected)

    def pairs(self, bug: str = "none", pairs: int = 3, steps: int = 5) -> None:
        x = self.guarded(torch.arange(64.0 * pairs))
        y = self.guarded(torch.zeros(64 * pairs))
        self.call("pairs", x, y, pairs, steps, bug=bug)
        check(y, x.view(pairs, 2, 32).flip(1).flatten() if steps % 2 else x)


def check(result: torch.Tensor, expected: torch.Tensor | np.ndarray) -> None:
    if not np.array_equal(result.numpy(), np.asarray(expected)):
        raise Wrong(f"the result is wrong{', with NaN' if result.isnan().any() else ''}")


def exchange(state: np.ndarray, step: int) -> np.ndarray:
    """One step of grid_kernel and cluster_kernel: [blocks, threads, 4]."""
    blocks, threads, _ = state.shape
    total = state.sum(0)
    own = step + np.arange(threads) + np.arange(blocks)[:, None]
    after = np.repeat(total[None][..., [0, 0, 1, 2]], blocks, 0)
    after[..., 0] += own
    after[..., 3] += 1
    return after.astype(np.int32)


def operand(rows: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 32 bytes]; the rows of a have extremes too: subnormal, large, halfway between two of TF32."""
    x = torch.randn(rows, 32 // dtype.itemsize).to(dtype)
    if rows == 16:
        x[1] = torch.finfo(dtype).smallest_normal / 4
        x[2, 1] = torch.finfo(dtype).max / 16
        x[3, :2] = torch.tensor([1 + 2**-11, -1 - 2**-11])
    return x


def round_tf32(x: np.ndarray) -> np.ndarray:
    """To 10 bits of mantissa, ties away from zero: in float64, where no step rounds."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    rounded = np.copysign(np.floor(np.abs(fraction) * 2**11 + 0.5), fraction)
    return np.ldexp(rounded, exponent - 11).astype(np.float32)


@pytest.fixture(scope="module")
def selftest() -> Selftest:
    return Selftest()


SOUND: dict[str, Callable[[Selftest], None]] = {
    "reduce": Selftest.reduce,
    "reduce-one-warp": lambda s: s.reduce(blocks=1, threads=32),
    "grid": Selftest.grid,
    "grid-one-block": lambda s: s.grid(blocks=1),
    "cluster": Selftest.cluster,
    "cluster-16": lambda s: s.cluster(size=16, steps=3),
    "clusters": lambda s: s.cluster(clusters=3),
    "pairs": Selftest.pairs,
    **{kind: lambda s, kind=kind: s.product(kind=kind) for kind in KINDS},
}


@pytest.mark.parametrize("kernel", SOUND.values(), ids=SOUND)
def test_sound_kernels_pass_with_every_seed(selftest: Selftest, kernel: Callable[[Selftest], None]) -> None:
    for seed in range(SEEDS):
        selftest.library.shim_seed(seed)
        kernel(selftest)


WRONG = "the result is wrong"
SPIN = "deadlock: nobody can go on: .*polling in load_acquire .*selftest.cu:\\d+"
UNKNOWN = "not initialised"
# (kernel, bug, what each failure may say, seeds of 1 to 24 that must fail)
BUGS = [
    (Selftest.reduce, "no_barrier", WRONG, 12),
    (Selftest.reduce, "past_shared", "byte 768 of block .* 512 bytes of shared memory", 24),
    (lambda s, bug: s.reduce(bug, threads=16), "just_past_shared", "wrote byte 64 of its 64 bytes", 24),
    (Selftest.reduce, "past_global", "byte 44 of a buffer of 12 bytes", 24),
    (Selftest.reduce, "just_past_global", "wrote byte 12 of a buffer of 12 bytes", 24),
    (Selftest.reduce, "before_global", "wrote byte -12 of a buffer of 12 bytes", 24),
    (Selftest.reduce, "leaves_early", "divergent barrier", 24),
    (Selftest.reduce, "two_barriers", "divergent barrier .* line", 24),
    (Selftest.grid, "flag_one_less", WRONG, 20),
    (Selftest.grid, "one_buffer", WRONG, 20),
    (Selftest.grid, "plain_release", WRONG, 16),
    (Selftest.grid, "no_wait", WRONG, 20),
    (Selftest.grid, "release_before_barrier", WRONG, 16),
    (Selftest.grid, "waits_for_nobody", SPIN, 24),
    (Selftest.cluster, "few_bytes", f"{WRONG}|deadlock|more arrivals|has ended", 20),
    (Selftest.cluster, "many_bytes", "deadlock: .* at mbarrier_wait", 24),
    (Selftest.cluster, "parity", f"{WRONG}|deadlock|more arrivals|has ended", 20),
    (Selftest.cluster, "one_buffer", f"{WRONG}|deadlock|more arrivals", 16),
    (Selftest.cluster, "no_wait", f"{WRONG}|more arrivals|has ended", 20),
    (Selftest.cluster, "no_init", UNKNOWN, 24),
    (Selftest.cluster, "no_init_done", UNKNOWN, 24),
    (Selftest.cluster, "no_first_sync", UNKNOWN, 12),
    (Selftest.cluster, "late_store", "a block that has ended", 20),
    (Selftest.cluster, "unawaited_store", "a block that has ended: .* is on its way to block", 8),
    (Selftest.cluster, "rank_too_high", "remote .*: rank 4, expected 0 to 3", 24),
    (Selftest.cluster, "others_mbarrier", "goes to block 1, its mbarrier is in block 0", 24),
    (Selftest.cluster, "extra_arrival", "more arrivals than the 1 of the phase", 24),
    (Selftest.cluster, "overwrites_mbarrier", UNKNOWN, 24),
    (Selftest.product, "skips_copy", f"{WRONG}, with NaN", 24),  # shared memory starts as NaN
    (Selftest.product, "half_warp", "warp divergence: .*16 threads at mma_bf16", 24),
    (Selftest.product, "two_instructions", "warp divergence: other lanes", 24),
    (lambda s, bug: s.product(bug, "tf32"), "not_rounded", "operand not rounded", 24),
    (Selftest.product, "misaligned", "thread \\(9,0,0\\), ldmatrix_x4 .* not aligned to 16 bytes", 24),
    (Selftest.pairs, "no_barrier", WRONG, 12),
    (Selftest.pairs, "same_barrier", f"{WRONG}|divergent barrier", 12),
    (Selftest.pairs, "barrier_count", f"{WRONG}|divergent barrier", 24),
]


@pytest.mark.parametrize(("kernel", "bug", "message", "least"), BUGS, ids=[bug for _, bug, _, _ in BUGS])
def test_bugs_are_caught(
    selftest: Selftest, kernel: Callable[[Selftest, str], None], bug: str, message: str, least: int
) -> None:
    said = []
    for seed in range(1, SEEDS + 1):
        selftest.library.shim_seed(seed)
        try:
            kernel(selftest, bug)
        except Wrong as wrong:
            said.append(str(wrong))
    assert len(said) >= least, said
    for words in said:
        assert re.search(message, words), words
    print(f"{bug}: {len(said)} of {SEEDS}")


def test_a_plain_spin_wait_is_ended_by_the_watchdog(selftest: Selftest) -> None:
    selftest.library.shim_seed(0)
    with pytest.raises(Wrong, match="spins: no primitive"):
        selftest.reduce("spins_plainly")
    selftest.reduce()


def test_a_grid_barrier_needs_a_cooperative_launch(selftest: Selftest) -> None:
    selftest.library.shim_seed(1)
    with pytest.raises(Wrong, match=SPIN):
        selftest.grid(cooperative=0)


@pytest.mark.parametrize(
    ("kernel", "arguments", "code", "message"),
    [
        ("reduce", (1, 512, 2048), INVALID_CONFIGURATION, "512 threads, the kernel allows 1 to 256"),
        ("reduce", (1, 0, 0), INVALID_CONFIGURATION, "0 threads"),
        ("reduce", (0, 32, 128), INVALID_CONFIGURATION, "grid: 0 x 1 x 1 blocks"),
        ("reduce", (1, 32, 227 * 1024 + 1), INVALID_VALUE, "expected 0 to 232448"),
        (
            "cluster",
            (6, 4, 1),
            INVALID_CONFIGURATION,
            "grid: 6 x 1 x 1 blocks, expected a multiple of cluster",
        ),
        ("cluster", (17, 17, 1), 912, "cluster: 17 blocks, expected 1 to 16"),
    ],
)
def test_shapes_that_are_refused(
    selftest: Selftest, kernel: str, arguments: tuple[int, ...], code: int, message: str
) -> None:
    pointers = [torch.zeros(64)] * (2 if kernel == "reduce" else 1)
    with pytest.raises(Wrong, match=f"error {code}: .*{message}"):
        selftest.call(kernel, *pointers, *arguments)


def test_releases_are_seen_late_but_in_order(selftest: Selftest) -> None:
    steps = []
    for seed in range(1, SEEDS + 1):
        selftest.library.shim_seed(seed)
        counter, y = (selftest.guarded(torch.zeros(n, dtype=torch.int32)) for n in (1, 3))
        selftest.call("counter", counter, y, 1000)
        assert y[:2].tolist() == [0, 1000]
        steps.append(int(y[2]))
    assert max(steps) > 10 and len(set(steps)) > 5


def test_a_seed_repeats_its_order(selftest: Selftest) -> None:
    def words(seed: int) -> str:
        selftest.library.shim_seed(seed)
        with pytest.raises(Wrong) as caught:
            selftest.reduce("leaves_early")
        return str(caught.value)

    assert [words(seed) for seed in range(1, 9)] == [words(seed) for seed in range(1, 9)]
    assert len({words(seed) for seed in range(1, 9)}) > 1
