from collections.abc import Sequence

from typing_extensions import CapsuleType

def layer_forward(
    dtype: int,
    threads: int,
    sizes: Sequence[int],
    batch_sizes: int,
    x: int,
    ids: int,
    h0: int,
    c0: int,
    weights: Sequence[int],
    y: int,
    h_n: int,
    c_n: int,
    c: int,
    gates: int,
) -> None: ...
def layer_backward(
    dtype: int,
    threads: int,
    sizes: Sequence[int],
    batch_sizes: int,
    dy: int,
    dh_n: int,
    dc_n: int,
    x: int,
    ids: int,
    h0: int,
    c0: int,
    weights: Sequence[int],
    y: int,
    c: int,
    gates: int,
    dx: int,
    dh0: int,
    dc0: int,
    dweights: Sequence[int],
) -> None: ...

class Generator:
    def __init__(
        self,
        precision: int,
        sizes: Sequence[int],
        table: int,
        weights: int,
        scales: int,
        biases: int,
        decoder: int,
        decoder_scales: int,
        decoder_bias: int,
    ) -> None: ...
    def run(
        self,
        threads: int,
        B: int,
        steps: int,
        position: int,
        choice: tuple[int, float, int, float, float] | None,
        ids: int,
        last: int,
        h: int,
        c: int,
        nats: int,
    ) -> None: ...

def peak(dtype: int, threads: int, seconds: float) -> float: ...
def buffer(bytes: int) -> CapsuleType: ...
def release_buffers() -> None: ...
def engine() -> str: ...
def available_engines() -> list[str]: ...
def select_engine(name: str) -> None: ...
