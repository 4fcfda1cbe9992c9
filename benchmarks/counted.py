"""What callgrind.py runs under valgrind: the engine without torch, whose import takes half a minute there.

Arguments: the native module's file, then T,B,I,H of each shape. With every instruction set that valgrind has,
for each shape, it calls the forward and then the backward of one layer: once to warm up, and once between two
calls of getppid, the C library's, which nothing else calls and at which callgrind begins another part of its
output. A line is printed for each call that is counted.
"""

import os
import sys
from array import array
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

FLOAT32, ONE_THREAD = 0, 1


def main(file: str, *shapes: str) -> None:
    spec = spec_from_file_location("_C", file)
    assert spec and spec.loader
    native = module_from_spec(spec)
    spec.loader.exec_module(native)
    for isa in native.available_engines():
        native.select_engine(isa)
        for shape in shapes:
            for name, run in passes(native, *map(int, shape.split(","))).items():
                run()
                os.getppid()
                run()
                os.getppid()
                print(isa, shape, name)


def passes(native: Any, T: int, B: int, I: int, H: int) -> dict[str, Callable[[], None]]:  # noqa: E741
    """One layer's forward, which saves what the backward needs, and its backward with all gradients."""
    kept, N, state = [], T * B, B * H

    def memory(*sizes: int) -> list[int]:
        """Addresses of new float32 arrays."""
        arrays = [array("f", [0.01]) * size for size in sizes]
        kept.extend(arrays)
        return [values.buffer_info()[0] for values in arrays]

    sizes = (FLOAT32, ONE_THREAD, [T, B, N, I, H, 1], 0)
    weights, dweights = memory(4 * H * I, 4 * H * H, 4 * H, 4 * H), memory(4 * H * I, 4 * H * H, 4 * H)
    x, dx, y, dy, c, gates = memory(N * I, N * I, N * H, N * H, N * H, N * 4 * H)
    h0, c0, h_n, c_n, dh0, dc0 = memory(*[state] * 6)

    def forward() -> None:
        native.layer_forward(*sizes, x, 0, h0, c0, weights, y, h_n, c_n, c, gates)

    def backward() -> None:
        given = (dy, 0, 0, x, 0, h0, c0, weights, y, c, gates)
        native.layer_backward(*sizes, *given, dx, dh0, dc0, dweights)
        assert kept  # alive as long as the addresses are used

    return {"forward": forward, "backward": backward}


if __name__ == "__main__":
    main(*sys.argv[1:])
