"""Text on the GPU: all layers, the decoder and the draw of many characters in one launch.

What stays in which block and how a character comes about, csrc/cuda/generate.cuh says. Here the weights are
laid out for it, and a model of the card says how the hidden units are cut. No card has confirmed the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ... import _cuda
from .. import Stack
from .plans import CELL_US, CLOCK_GHZ, L2_BYTES_PER_CLOCK, MEET_US, SHARED_BYTES_PER_CLOCK, WARP, Card, card

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # of the weights
QUAD = 4  # rows that are multiplied together, and numbers that lie together: as csrc/cuda/generate.h
STEP_BYTES = QUAD * WARP * 16  # of a step along K of a warp's weights
ROUNDS = 2**32 - 1  # of a launch: a flag counts them
FMAS_PER_CLOCK = 128  # of a multiprocessor, float32
SUM_CLOCKS = 32 * 4  # one lane adds up those of all, each waiting for the one before
ROW_US = 0.2  # a load that waits for an id: the row of the table
DRAW_CLOCKS = 700  # meetings, and loops over 32 lanes
DRAW_CLOCKS_PER_32 = 30  # characters, for each stream of a warp
COMPARE_INSTRUCTIONS = 5  # of a filter, for each pair of characters


@dataclass(frozen=True)
class Sizes:
    """L layers of H hidden units, V characters, B streams."""

    L: int
    H: int
    V: int
    B: int


@dataclass(frozen=True)
class Kernel:
    """A kernel as csrc/cuda/launch.h tells of it, with its number there."""

    number: int
    precision: str
    streams: int
    threads: int


@dataclass(frozen=True)
class Terms:
    """What a character takes, each in µs.

    Args:
        layers: L.
        own_us: the product of a layer with its own h, made while another round is waited for.
        meet_us: a round of the grid: a hop to all blocks, and theirs.
        other_us: products with what a round brings: the layers above the first, and the decoder.
        sums_us: of a warp's lanes, through shared memory.
        cells_us: of all layers, one after the other, and the row that an id names.
        draw_us: softmax, all filters, and the choice.
        l2_us: h and logits from L2.
    """

    layers: int
    own_us: float
    meet_us: float
    other_us: float
    sums_us: float
    cells_us: float
    draw_us: float
    l2_us: float

    @property
    def character_us(self) -> float:
        """All of them; for the decoder there is nothing to do while h is waited for."""
        waited = self.layers * max(self.own_us, self.meet_us) + self.meet_us
        return waited + self.other_us + self.sums_us + self.cells_us + self.draw_us + self.l2_us


@dataclass(frozen=True)
class Plan:
    """A kernel, and how the hidden units are cut.

    Args:
        kernel: which one.
        slices: blocks. units: hidden units of each.
        steps: along K, of a matrix. turns: quads of the decoder of a warp, at most.
        kept: steps along K of a warp's weights that lie in shared memory.
        shared_bytes: of a block.
        terms: the predicted time of a character, of all streams at once.
    """

    kernel: Kernel
    slices: int
    units: int
    steps: int
    turns: int
    kept: int
    shared_bytes: int
    terms: Terms

    def told(self, sizes: Sizes) -> list[int]:
        """What the kernel is told: [B, L, H, V, slices, units, kept]."""
        return [sizes.B, sizes.L, sizes.H, sizes.V, self.slices, self.units, self.kept]


SharedBytes = Callable[[int, list[int]], int]  # by a kernel's number and what Plan.told gives


def plans(
    sizes: Sizes, precision: str, card: Card, kernels: list[Kernel], shared_bytes: SharedBytes
) -> list[Plan]:
    """Every plan that fits, the shortest predicted character first.

    Args:
        sizes: of the model.
        precision: "float32" or "bfloat16".
        card: what it runs on.
        kernels: those that there are.
        shared_bytes: what they need.
    """
    found = []
    fitting = [k for k in kernels if k.precision == precision and k.streams >= sizes.B]
    for kernel in sorted(fitting, key=lambda k: k.streams)[:1]:
        steps = math.ceil(sizes.H * DTYPES[precision].itemsize / (WARP * 16))
        for units in range(QUAD, kernel.threads // WARP + 1, QUAD):
            slices = math.ceil(sizes.H / units)
            turns = math.ceil(math.ceil(math.ceil(sizes.V / QUAD) / slices) / units)
            empty = shared_bytes(kernel.number, [sizes.B, sizes.L, sizes.H, sizes.V, slices, units, 0])
            if slices > card.multiprocessors or empty > card.shared_bytes:
                continue
            room, all_steps = (
                (card.shared_bytes - empty) // (units * STEP_BYTES),
                _matrices(sizes, turns) * steps,
            )
            kept = min(room, all_steps)
            terms = _terms(sizes, kernel, slices, units, steps, 1 - kept / all_steps)
            needed = empty + kept * units * STEP_BYTES
            found.append(Plan(kernel, slices, units, steps, turns, kept, needed, terms))
    return sorted(found, key=lambda plan: plan.terms.character_us)


def supports(sizes: Sizes, precision: str, device: torch.device) -> str | None:
    """None when a kernel can write for a model of these sizes, else the reason why not."""
    if precision not in DTYPES:
        return f"keeps weights in {' or '.join(DTYPES)}, not {precision}"
    streams = max(kernel.streams for kernel in _kernels())
    if not 1 <= sizes.B <= streams:
        return f"writes 1 to {streams} streams at once, not {sizes.B}"
    if not plans(sizes, precision, _card(device), _kernels(), _cuda.generate_shared_bytes):
        model = f"L={sizes.L}, H={sizes.H}, V={sizes.V}"
        return f"{model} with B={sizes.B} does not fit on this GPU's multiprocessors"
    return None


class Generate:
    """The streams of one model: their states, and what they write.

    Args:
        stack: the model.
        B: streams.
        precision: "float32" or "bfloat16": of all weights but the table and the biases.
        seed: of the draws, from 0 to 2**64 - 1.

    The states h and c [L, B, H], float32, are those after all characters but the last, `last` [B], int64;
    all zeros at first. They may be written to between calls.

    Raises:
        ValueError: when no kernel serves these sizes.
    """

    def __init__(self, stack: Stack, B: int, precision: str, seed: int) -> None:
        device, (V, H) = stack.decoder.device, stack.decoder.shape
        self._sizes = sizes = Sizes(len(stack.biases) + 1, H, V, B)
        if (reason := supports(sizes, precision, device)) is not None:
            raise ValueError(f"the CUDA kernel {reason}")
        self._plan = plans(sizes, precision, _card(device), _kernels(), _cuda.generate_shared_bytes)[0]
        self._seed = seed
        self._weights = _packed(stack, sizes, self._plan).to(DTYPES[precision])
        self._table, self._bias = _by_unit(stack.table), _by_unit(stack.biases)
        self._decoder_bias = pad(stack.decoder_bias.float(), (0, -V % QUAD))
        self.h, self.c = (torch.zeros(sizes.L, B, H, device=device) for _ in range(2))
        self.last = torch.zeros(B, dtype=torch.int64, device=device)

    def generate(
        self, count: int, first_position: int, temperature: float, top_k: int, top_p: float, min_p: float
    ) -> Tensor:
        """Writes characters, and moves the states on.

        Args:
            count: of characters, at least 1.
            first_position: of the first of them, by which its random number is drawn.
            temperature, top_k, top_p, min_p: as csrc/cuda/draw.cuh says.

        Returns:
            The characters [count, B], int64.

        Raises:
            ValueError: when they are too many for one launch.
            RuntimeError: when the launch fails.
        """
        n, plan, device = self._sizes, self._plan, self.h.device
        if count * (n.L + 1) > ROUNDS:
            raise ValueError(f"count must be at most {ROUNDS // (n.L + 1)}, got {count}")
        ids = torch.empty(count, n.B, dtype=torch.int64, device=device)
        mail, flags = self._mail()
        with torch.cuda.device_of(ids):
            _cuda.generate(
                plan.kernel.number, plan.told(n), self._seed, temperature, min(top_k, n.V), top_p, min_p,
                count, first_position, self._weights.data_ptr(), self._table.data_ptr(),
                self._bias.data_ptr(), self._decoder_bias.data_ptr(), self.h.data_ptr(), self.c.data_ptr(),
                self.last.data_ptr(), ids.data_ptr(), mail.data_ptr(), flags.data_ptr(),
                torch.cuda.current_stream(device).cuda_stream if ids.is_cuda else 0,
            )  # fmt: skip
        return ids

    def _mail(self) -> tuple[Tensor, Tensor]:
        """What blocks give each other in two rounds, and their flags."""
        plan, device = self._plan, self.h.device
        quads = math.ceil(math.ceil(self._sizes.V / QUAD) / plan.slices)
        room = max(quads, plan.units // QUAD) * plan.kernel.streams * QUAD
        flags = torch.zeros(plan.slices, dtype=torch.int32, device=device)
        return torch.empty(2, plan.slices, room, device=device), flags


def generator(stack: Stack, B: int, precision: str, seed: int) -> Generate:
    """What fusedlstm.generate asks of a backend; arguments as Generate's."""
    return Generate(stack, B, precision, seed)


def _packed(stack: Stack, n: Sizes, plan: Plan) -> Tensor:
    """Weights as the kernel reads them [slices, units, matrices, steps, 4 rows, 32 lanes, parts, 4]."""
    slices, units, turns = plan.slices, plan.units, plan.turns
    parts = QUAD // DTYPES[plan.kernel.precision].itemsize
    width = plan.steps * parts * WARP * QUAD
    gates = stack.weights.view(-1, 4, n.H, n.H)
    layers = pad(gates, (0, width - n.H, 0, slices * units - n.H)).view(-1, 4, slices, units, width)
    decoder = pad(stack.decoder, (0, width - n.H, 0, turns * units * slices * QUAD - n.V))
    quads = decoder.view(turns, units, slices, QUAD, width)
    rows = torch.cat((layers.permute(2, 3, 0, 1, 4), quads.permute(2, 1, 0, 3, 4)), 2)
    lanes = rows.view(slices, units, -1, QUAD, plan.steps, parts, WARP, QUAD)
    return lanes.permute(0, 1, 2, 4, 3, 6, 5, 7).contiguous()


def _by_unit(gates: Tensor) -> Tensor:
    """Rows of four gates [N, 4H] with the gates of a unit side by side [N, H, 4]."""
    return gates.float().unflatten(1, (4, gates.shape[1] // 4)).transpose(1, 2).contiguous()


def _matrices(n: Sizes, turns: int) -> int:
    return 2 * n.L - 1 + turns


def _terms(n: Sizes, kernel: Kernel, slices: int, units: int, steps: int, far: float) -> Terms:
    """The terms of a character; `far` is the share of the weights that is read from L2."""
    parts, B = QUAD // DTYPES[kernel.precision].itemsize, kernel.streams

    def product_us(warps: int) -> float:
        weights, operands = warps * steps * STEP_BYTES, warps * steps * B * parts * WARP * 16
        return _us(max(
            (weights * (1 - far) + operands) / SHARED_BYTES_PER_CLOCK, weights * far / L2_BYTES_PER_CLOCK,
            warps * steps * WARP * QUAD * QUAD * parts * B / FMAS_PER_CLOCK,
        ))  # fmt: skip

    quads = math.ceil(n.V / QUAD)
    block_quads = math.ceil(quads / slices)
    sums = n.L + math.ceil(block_quads / units)
    draw = DRAW_CLOCKS + math.ceil(B / units) * math.ceil(n.V / 32) * DRAW_CLOCKS_PER_32
    compared = B * n.V**2 * COMPARE_INSTRUCTIONS / FMAS_PER_CLOCK
    pieces = (n.L * slices * units // QUAD + quads) * B * 16
    return Terms(
        layers=n.L,
        own_us=product_us(units),
        meet_us=MEET_US["grid"],
        other_us=(n.L - 1) * product_us(units) + product_us(block_quads),
        sums_us=_us(sums * (SUM_CLOCKS + 2 * units * B * WARP * 16 / SHARED_BYTES_PER_CLOCK)),
        cells_us=n.L * CELL_US + ROW_US,
        draw_us=_us(draw + compared),
        l2_us=_us(pieces / L2_BYTES_PER_CLOCK),
    )


def _us(clocks: float) -> float:
    return clocks / CLOCK_GHZ / 1e3


def _kernels() -> list[Kernel]:
    return [Kernel(number, *fields) for number, fields in enumerate(_cuda.generate_kernels())]


def _card(device: torch.device) -> Card:
    return card(torch.cuda.current_device() if device.index is None else device.index)
