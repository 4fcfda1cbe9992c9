"""The barrier of a grid as the Triton kernels use it: time of a round, every program waiting for all."""

from __future__ import annotations

import json
import statistics

import torch
import triton
import triton.language as tl

from fusedlstm.backends.triton.kernels import _arrive, _wait

ROUNDS, TIMES = 2000, 7
MOST = 256  # programs
PROGRAMS = (16, 32, 64, 128, 0)  # 0: one for each multiprocessor
WARPS = (4, 8)


@triton.jit
def barrier_kernel(barrier_ptr, data_ptr, wrong_ptr, rounds, MOST: tl.constexpr, CHECKED: tl.constexpr):
    """With CHECKED every program writes the round before the barrier and expects everybody's after it."""
    i, programs = tl.arange(0, MOST), tl.num_programs(0)
    wrong = tl.zeros((MOST,), tl.int32)
    for r in range(rounds):
        data = data_ptr + (r % 2) * MOST
        if CHECKED:
            tl.store(data + tl.program_id(0), r + 1)
        _arrive(barrier_ptr)
        _wait(barrier_ptr, (r + 1) * programs)
        if CHECKED:
            found = tl.load(data + i, mask=i < programs, other=r + 1, cache_modifier=".cg")
            wrong += (found != r + 1).to(tl.int32)
    tl.store(wrong_ptr + tl.program_id(0), tl.sum(wrong))


def round_us(programs: int, warps: int, checked: bool) -> float:
    """Microseconds of one round.

    Raises:
        AssertionError: a program did not see what another had written.
    """
    barrier = torch.zeros(1, dtype=torch.int32, device="cuda")
    data = torch.zeros(2 * MOST, dtype=torch.int32, device="cuda")
    wrong = torch.ones(programs, dtype=torch.int32, device="cuda")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    barrier_kernel[(programs,)](
        barrier, data, wrong, ROUNDS, MOST, CHECKED=checked, num_warps=warps, launch_cooperative_grid=True
    )  # fmt: skip
    end.record()
    end.synchronize()
    assert not wrong.any(), "the barrier lets programs through that must wait"
    return 1e3 * begin.elapsed_time(end) / ROUNDS


def main() -> None:
    """Prints a line of JSON for each number of programs."""
    for programs in PROGRAMS:
        count = programs or min(torch.cuda.get_device_properties(0).multi_processor_count, MOST)
        for warps in WARPS:
            round_us(count, warps, checked=True)
            round_us(count, warps, checked=False)  # compiles
            us = [round_us(count, warps, checked=False) for _ in range(TIMES)]
            name = f"triton_barrier_{programs or 'full'}" + ("" if warps == max(WARPS) else f"_{warps}_warps")
            figure = {"name": name, "us": statistics.median(us), "us_least": min(us), "us_most": max(us)}
            print(json.dumps(figure | {"programs": count, "warps": warps}), flush=True)


if __name__ == "__main__":
    main()
