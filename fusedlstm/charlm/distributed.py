"""Several processes, started by torchrun, that train one model: each reads some of the streams."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fusedlstm.charlm.settings import CharLMError, Settings


@dataclass(frozen=True)
class Group:
    """The processes of a run; one alone by default."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process talks and writes for all."""
        return self.rank == 0

    def rows(self, B: int) -> slice:
        """Which of B streams are this process's.

        Raises:
            CharLMError: when they cannot be dealt out evenly.
        """
        if B % self.size:
            raise CharLMError(f"--batch-size must be a multiple of the {self.size} processes, got {B}")
        return slice(B * self.rank // self.size, B * (self.rank + 1) // self.size)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """The model, called through what averages its gradients over the processes."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(
            model, [self.device] if self.device.index is not None else None
        )

    def wait(self) -> None:
        """Until all processes are here."""
        self.agreed(0)

    def agreed(self, value: float) -> float:
        """The largest of all processes' values."""
        return float(self._reduced(value, dist.ReduceOp.MAX)) if self.size > 1 else value

    def mean(self, value: float) -> float:
        """The mean of all processes' values."""
        return float(self._reduced(value, dist.ReduceOp.SUM)) / self.size if self.size > 1 else value

    def gathered(self, tensor: Tensor, dim: int) -> Tensor:
        """All processes' tensors, one after the other along a dimension."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim)

    def _reduced(self, value: float, op: dist.ReduceOp.RedOpType) -> Tensor:
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op)
        return tensor


@contextmanager
def group(settings: Settings) -> Iterator[Group]:
    """The processes that torchrun started, or this one alone.

    Raises:
        CharLMError: when the device is not there.
    """
    device = settings.torch_device()
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield Group(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
