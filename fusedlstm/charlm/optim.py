"""How gradients become steps: optimizers, step sizes, clipping, and the average of the weights."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fusedlstm.charlm.settings import Settings

Parameters = Iterable[nn.Parameter]
OPTIMIZERS: dict[str, Callable[[Parameters, Settings], torch.optim.Optimizer]] = {
    "adam": lambda p, s: torch.optim.Adam(
        p, s.learning_rate, betas=(0.9, 0.99), weight_decay=s.weight_decay, fused=True
    ),
    "adamw": lambda p, s: torch.optim.AdamW(
        p, s.learning_rate, betas=(0.9, 0.99), weight_decay=s.weight_decay, fused=True
    ),
    "rmsprop": lambda p, s: torch.optim.RMSprop(
        p, s.learning_rate, alpha=s.decay_rate, weight_decay=s.weight_decay
    ),
}

# Shares of the learning rate: by settings, share of the run that is done, and epochs that are done.
SCHEDULES: dict[str, Callable[[Settings, float, float], float]] = {
    "cosine": lambda s, done, epochs: (1 + math.cos(math.pi * min(done, 1))) / 2,
    "decay": lambda s, done, epochs: (
        s.learning_rate_decay ** max(0, math.floor(epochs - s.learning_rate_decay_after) + 1)
    ),
    "constant": lambda s, done, epochs: 1.0,
}


def optimizer_for(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that the settings name, over all parameters."""
    return OPTIMIZERS[settings.optimizer](model.parameters(), settings)


def learning_rate(settings: Settings, step: int, done: float, epochs: float) -> float:
    """The step size of the next step.

    Args:
        step: steps that are done.
        done: share of the run that is done, 0 to 1.
        epochs: readings of the text that are done.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.learning_rate * warm * SCHEDULES[settings.schedule](settings, done, epochs)


def clip(model: nn.Module, settings: Settings) -> float:
    """Holds the gradients down, by their norm or each by itself; returns the norm that they had."""
    by_norm = settings.clip == "norm"
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip if by_norm else math.inf)
    if not by_norm:
        nn.utils.clip_grad_value_(model.parameters(), settings.grad_clip)
    return norm.item()


def average_of(model: nn.Module, settings: Settings) -> AveragedModel | None:
    """A moving average of the weights, to be updated after each step; None when not asked for."""
    if not settings.ema:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema))
