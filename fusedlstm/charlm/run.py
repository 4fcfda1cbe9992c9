"""One run between two steps: model, optimizer, place in the text, carried state, and how they are kept."""

import math
import time
from dataclasses import asdict
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm import optim
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.distributed import Group
from fusedlstm.charlm.evaluate import evaluate
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.sample import write
from fusedlstm.charlm.settings import FIXED, CharLMError, Settings
from fusedlstm.charlm.streams import Streams, fit

VAL_CHARS = 100_000  # what a pause reads of the validation text; the end of a run reads all
EXPLODED = 3.0  # times the loss of a model that knows nothing


class Diverged(CharLMError):
    """The loss or its gradient is no longer a number, or far above that of a model that knows nothing."""


class Run:
    """A model in training, between two steps.

    Args:
        settings: with a batch and length that the text can fill.
        text: what to train on.
        group: the processes that train it; this one alone by default.
    """

    def __init__(self, settings: Settings, text: Corpus, group: Group | None = None) -> None:
        self.group = group or Group(settings.torch_device())
        device, B = self.group.device, settings.batch_size
        torch.manual_seed(settings.seed)
        self.settings, self.text, self.dtype = settings, text, settings.autocast_dtype()
        self.model = CharLM.from_settings(settings, len(text.vocab))
        split = text.split(settings)
        self.model.start_from(torch.from_numpy(split.counts(len(text.vocab))))
        self.model.to(device)
        self.called = self.group.wrapped(self.model)
        self.optimizer = optim.optimizer_for(self.model, settings)
        self.average = optim.average_of(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.streams = Streams(split.train, B, device, self.group.rows(B))
        val_B, _ = fit(split.val, B, 1)
        self.val_streams = Streams(split.val, val_B, device) if val_B > 0 else None
        self.state: State | None = None
        self.step = 0
        self.rate_scale = 1.0  # halved by each rollback
        self.losses: list[float] = []  # since figures were last asked for
        self.metrics: list[dict[str, float]] = []
        self.seconds = self.step_seconds = 0.0
        self.started = time.perf_counter()
        torch.manual_seed(settings.seed + self.group.rank)  # each process drops other units

    @property
    def chars_per_step(self) -> int:
        return self.settings.batch_size * self.settings.seq_length

    @property
    def steps_per_epoch(self) -> int:
        return self.streams.n // self.settings.seq_length

    @property
    def epochs(self) -> float:
        """Readings of the training text that are done."""
        return self.step / self.steps_per_epoch

    @property
    def writer(self) -> CharLM:
        """The model that validates and writes: the average of the weights where there is one."""
        return cast(CharLM, self.average.module) if self.average else self.model

    def describe(self) -> str:
        """The run in one line."""
        text = self.text
        where = f"{str(self.dtype).removeprefix('torch.')} on {self.group.device}"
        processes = f" in {self.group.size} processes" if self.group.size > 1 else ""
        symbols = f"{len(text.ids):,} {text.vocab.kind}, {len(text.vocab)} different"
        return f"{text.name}: {symbols}; {self.model.describe()}; {where}{processes}; step {self.step}"

    def progress(self) -> float:
        """How much of the steps, the epochs, or else the minutes is done; 1 is all."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        if self.settings.epochs is not None:
            return self.step / math.ceil(self.settings.epochs * self.steps_per_epoch)
        return self.seconds / (60 * self.settings.minutes)

    def advance(self) -> float:
        """Trains one step and returns its loss in nats, the mean over all processes.

        Raises:
            Diverged: the weights are as they were.
        """
        began = time.perf_counter()
        T = self.settings.seq_length
        chunk = self.step % self.steps_per_epoch
        if chunk == 0:
            self.state = None  # the streams start again
        x, y = self.streams.chunk(chunk * T, T)
        rate = self.rate_scale * optim.learning_rate(self.settings, self.step, self.progress(), self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        loss, self.state = train_step(
            self.called, self.optimizer, x, y, self.state, self.settings, self.scaler, self.group
        )
        if self.average:
            self.average.update_parameters(self.model)
        self.step += 1
        self.losses.append(loss)
        self.seconds = self.group.agreed(time.perf_counter() - self.started)
        self.step_seconds = time.perf_counter() - began
        return loss

    def figures(self) -> dict[str, float]:
        """Where the training stands, and its mean loss in nats since this was last asked for."""
        losses, self.losses = self.losses, []
        return {
            "step": self.step,
            "epoch": self.epochs,
            "seconds": self.seconds,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train": sum(losses) / len(losses),
        }

    def validate(self, whole: bool) -> None:
        """Adds to the metrics: the figures, and the loss in nats of the validation text.

        Args:
            whole: read all of the validation text, not VAL_CHARS spread over it.
        """
        metrics = self.figures()
        if self.val_streams:
            T = self.settings.seq_length
            steps = None if whole else math.ceil(VAL_CHARS / self.settings.batch_size)
            metrics["val"] = evaluate(self.writer, self.val_streams, T, self.dtype, steps)
        self.metrics.append(metrics)

    def sample(self) -> str:
        """What the model writes by now; leaves the random state of the training alone."""
        self.writer.eval()
        length, temperature = self.settings.sample_length, self.settings.temperature
        return "".join(write(self.writer, self.text.vocab, "", length, temperature, seed=self.settings.seed))

    def checkpoint(self) -> Checkpoint:
        """All that the run needs to go on as if it had never stopped; every process of a group must ask."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"ema.{name}": t for name, t in self.average.module.state_dict().items()}
            tensors["average.n_averaged"] = self.average.n_averaged
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
        for i, part in enumerate(self.state or ()):
            tensors[f"state.{i}"] = self.group.gathered(part, dim=1)
        for name, generator in _random_states(self.group.device).items():
            states = self.group.gathered(generator[None].to(self.group.device), dim=0)
            tensors |= {f"random.{name}.{rank}": state for rank, state in enumerate(states)}
        scaler = self.scaler.state_dict()
        for name in ("scale", "_growth_tracker") if scaler else ():
            tensors[f"scaler.{name}"] = torch.tensor(scaler[name])
        tensors["rate_scale"] = torch.tensor(self.rate_scale)
        return Checkpoint(
            self.settings,
            self.text.vocab,
            self.text.sha256,
            self.step,
            self.seconds,
            self.metrics,
            {name: tensor.cpu() for name, tensor in tensors.items()},
        )

    def restore(self, saved: Checkpoint) -> None:
        """Makes the run what it was when the checkpoint was made.

        Raises:
            CharLMError: when the checkpoint does not fit.
        """
        device = self.group.device
        try:
            self.model.load_state_dict(saved.part("model."))
            if self.average:
                self.average.module.load_state_dict(saved.part("ema."))
                self.average.n_averaged.copy_(saved.tensors["average.n_averaged"])
            values: dict[int, dict[str, Tensor]] = {}
            for name, tensor in saved.part("optimizer.").items():
                i, _, key = name.partition(".")
                values.setdefault(int(i), {})[key] = tensor
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": values, "param_groups": groups})
            state = [saved.tensors[f"state.{i}"].to(device) for i in range(len(saved.part("state.")))]
            rows = self.group.rows(self.settings.batch_size)
            self.state = tuple(part[:, rows].contiguous() for part in state) or None
            scaler = {name: tensor.item() for name, tensor in saved.part("scaler.").items()}
            if scaler:
                self.scaler.load_state_dict(self.scaler.state_dict() | scaler)
            self.rate_scale = saved.tensors["rate_scale"].item()
            _set_random_states(device, saved.part("random."), self.group.rank)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CharLMError(f"the checkpoint is damaged: {' '.join(str(error).split())}") from None
        self.step, self.metrics, self.losses = saved.step, list(saved.metrics), []
        self.seconds, self.started = saved.seconds, time.perf_counter() - saved.seconds

    def roll_back(self, saved: Checkpoint) -> None:
        """Goes back to a checkpoint, from where the step size is half of what it last was."""
        scale, started = self.rate_scale / 2, self.started
        self.restore(saved)
        self.rate_scale, self.started = scale, started  # the clock does not go back
        self.seconds = time.perf_counter() - started

    @classmethod
    def resumed(
        cls, saved: Checkpoint, settings: Settings, text: Corpus, group: Group | None = None
    ) -> "Run":
        """A run exactly as it was saved, but for settings that are not FIXED.

        Raises:
            CharLMError: when FIXED settings or the text differ, or the checkpoint does not fit.
        """
        before, now = asdict(saved.settings), asdict(settings)
        for name in FIXED:
            if now[name] != before[name]:
                flag = f"--{name.replace('_', '-')}"
                raise CharLMError(f"{flag} must stay {before[name]!r} with --resume, got {now[name]!r}")
        if text.sha256 != saved.text_sha256:
            raise CharLMError(f"the text must be that of the run, got another ({text.name})")
        run = cls(settings, text, group)
        run.restore(saved)
        return run


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    state: State | None,
    settings: Settings,
    scaler: torch.amp.GradScaler | None = None,
    group: Group | None = None,
) -> tuple[float, State]:
    """One step of the optimizer on one chunk, in settings.accumulate parts of its streams.

    Args:
        model: a CharLM, maybe wrapped.
        x, y: inputs and targets [T, B], int64.
        state: of the chunk before, [L, B, H] each; None for zeros.
        settings: what holds for the arithmetic and the gradients.
        scaler: of the loss in float16.
        group: the processes that take the step together.

    Returns:
        The mean loss in nats, and the state for the next chunk, cut from the graph.

    Raises:
        Diverged: when the loss or the gradient is not finite, or the loss has exploded; the weights are as
            they were.
    """
    dtype, B = settings.autocast_dtype(), x.shape[1]
    scaler = scaler or torch.amp.GradScaler(x.device.type, enabled=False)
    optimizer.zero_grad()
    loss, states = 0.0, list[State]()
    cuts = [B * i // settings.accumulate for i in range(settings.accumulate + 1)]
    for begin, end in pairwise(cuts):
        part = slice(begin, end)
        before = tuple(s[:, part].contiguous() for s in state) if state else None
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            logits, after = model(x[:, part], before)
            nats = F.cross_entropy(logits.float().flatten(0, 1), y[:, part].flatten()) * ((end - begin) / B)
        scaler.scale(nats).backward()
        loss += nats.item()
        states.append(tuple(s.detach() for s in after))
    scaler.unscale_(optimizer)
    norm = optim.clip(model, settings)
    loss = group.mean(loss) if group else loss
    lost = EXPLODED * math.log(max(2, logits.shape[-1]))
    if not math.isfinite(loss) or loss > lost or not (math.isfinite(norm) or scaler.is_enabled()):
        raise Diverged(f"the loss is {loss:g}, the gradient's norm {norm:g}")
    scaler.step(optimizer)
    scaler.update()
    return loss, tuple(torch.cat(parts, 1) for parts in zip(*states, strict=True))


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_states(device: torch.device, saved: dict[str, Tensor], rank: int) -> None:
    """Sets what is saved for this process and device; a run that moves elsewhere goes on with new draws."""
    if (state := saved.get(f"cpu.{rank}")) is not None:
        torch.set_rng_state(state)
    if device.type == "cuda" and (state := saved.get(f"cuda.{rank}")) is not None:
        torch.cuda.set_rng_state(state, device)
