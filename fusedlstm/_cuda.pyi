"""The CUDA kernels: see csrc/cuda/bindings.cpp. Addresses are those of device memory, 0 for none."""

from collections.abc import Sequence

Described = tuple[str, str, int, int, int, int]

def forward(
    kernel: int, sizes: Sequence[int], tiles_at_once: int, offsets: int, fresh: int, mail: int, flags: int,
    gx: int, gx_stride: int, ids: int, bias: int, w_hh: int, h0: int, c0: int, y: int, h_n: int, c_n: int,
    c: int, gates: int, stream: int, /,
) -> None: ...  # fmt: skip
def backward(
    kernel: int, sizes: Sequence[int], tiles_at_once: int, k_splits: int, offsets: int, fresh: int, mail: int,
    flags: int, dy: int, dh_n: int, dc_n: int, c0: int, w_hh: int, c: int, gates: int, dgates: int, dh0: int,
    dc0: int, stream: int, /,
) -> None: ...  # fmt: skip
def forward_kernels() -> list[Described]: ...
def backward_kernels() -> list[Described]: ...
def forward_shared_bytes(kernel: int, sizes: Sequence[int], /) -> int: ...
def backward_shared_bytes(kernel: int, sizes: Sequence[int], k_splits: int, /) -> int: ...
def generate(
    kernel: int, sizes: Sequence[int], seed: int, temperature: float, top_k: int, top_p: float, min_p: float,
    count: int, first: int, weights: int, table: int, bias: int, decoder_bias: int, h: int, c: int, last: int,
    ids: int, mail: int, flags: int, stream: int, /,
) -> None: ...  # fmt: skip
def generate_kernels() -> list[tuple[str, int, int]]: ...
def generate_shared_bytes(kernel: int, sizes: Sequence[int], /) -> int: ...
def attributes(
    forward: bool, kernel: int, threads: int, shared_bytes: int, cluster: int, /
) -> tuple[int, int, int, int]: ...
def device(index: int, /) -> tuple[int, int, int, int]: ...
