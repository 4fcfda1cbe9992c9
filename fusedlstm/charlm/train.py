"""The trainer: truncated back-propagation through time over streams of text, the state carried over."""

import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusedlstm.charlm import checkpoint, corpus
from fusedlstm.charlm.checkpoint import Checkpoint
from fusedlstm.charlm.corpus import Corpus, Streams
from fusedlstm.charlm.model import CharLM, State
from fusedlstm.charlm.report import Report
from fusedlstm.charlm.sample import write
from fusedlstm.charlm.settings import FIXED, CharLMError, Settings

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, betas=(0.9, 0.99), fused=True),
    "rmsprop": partial(torch.optim.RMSprop, alpha=0.95),
}
VAL_CHARS = 100_000  # what a pause reads of the validation text; the end of a run reads all
FIRST_PAUSE = 100  # steps; the next come after twice that, four times, ... until every save_every


def train(settings: Settings, resume: str = "", stop: Callable[[], bool] = lambda: False) -> Path:
    """Trains a model, or goes on with a run, and keeps its checkpoint.

    Args:
        settings: all of the run; with resume, the saved settings, of which all but FIXED may differ.
        resume: folder of the run to go on with.
        stop: asked between steps; a true answer ends the run early, saved.

    Returns:
        The folder of the run.

    Raises:
        CharLMError: when text, settings, checkpoint or disk do not serve, or the loss is not finite.
    """
    text = corpus.load(settings.file, settings.data)
    if settings.file:  # a run can be resumed from any folder
        settings = replace(settings, file=str(Path(settings.file).resolve()))
    with Report() as report:
        if resume:
            folder, run = Path(resume), Run.resumed(resume, settings, text)
        else:
            folder, run = _new_folder(settings, text), Run(_settled(settings, text, report), text)
            checkpoint.save(folder, run.checkpoint())  # a disk that refuses should say so before the work
        report.say(run.describe())
        done = run.progress() >= 1
        while not done and not stop():
            loss = run.advance()
            done = run.progress() >= 1
            report.update(run.step, run.progress(), loss, run.chars_per_step, run.step_seconds)
            if done or _pause_due(run.step, run.settings.save_every):
                run.validate(whole=done)
                checkpoint.save(folder, run.checkpoint())
                report.pause(run.metrics[-1], run.sample())
        checkpoint.save(folder, run.checkpoint())
    report.say(f"saved in {folder} after step {run.step}, {run.seconds / 60:.1f} minutes of training")
    report.say(f"  to let it write: fusedlstm sample {shlex.quote(str(folder))}")
    more = f"--steps {2 * run.step}" if run.settings.steps else f"--minutes {2 * run.settings.minutes:g}"
    report.say(f"  to train it on:  fusedlstm train --resume {shlex.quote(str(folder))} {more}")
    return folder


class Run:
    """A model in training, between two steps.

    Args:
        settings: with a batch and length that the text can fill.
        text: what to train on.
    """

    def __init__(self, settings: Settings, text: Corpus) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.text = settings, text
        self.model = CharLM(len(text.vocab), settings.rnn_size, settings.num_layers, settings.dropout)
        self.optimizer = OPTIMIZERS[settings.optimizer](self.model.parameters(), lr=settings.learning_rate)
        train_ids, val_ids = text.split(settings.val_fraction)
        self.model.start_from(torch.from_numpy(np.bincount(train_ids, minlength=len(text.vocab))))
        self.streams = Streams(train_ids, settings.batch_size)
        val_B = min(settings.batch_size, len(val_ids) - 1)
        self.val_streams = Streams(val_ids, val_B) if val_B > 0 else None
        self.state: State | None = None
        self.step = 0
        self.losses: list[float] = []  # since the last validation
        self.metrics: list[dict[str, float]] = []
        self.seconds = self.step_seconds = 0.0
        self.started = time.perf_counter()

    @property
    def chars_per_step(self) -> int:
        return self.settings.batch_size * self.settings.seq_length

    def describe(self) -> str:
        """The run in one line."""
        V, H, L = len(self.text.vocab), self.settings.rnn_size, self.settings.num_layers
        parameters = sum(p.numel() for p in self.model.parameters())
        dtype = str(self.settings.autocast_dtype()).removeprefix("torch.")
        return (
            f"{self.text.name}: {len(self.text.ids):,} characters, {V} different; "
            f"{L} layers of {H}, {parameters:,} parameters; {dtype}; step {self.step}"
        )

    def progress(self) -> float:
        """How much of the steps, or else of the minutes, is done; 1 is all."""
        if self.settings.steps is not None:
            return self.step / self.settings.steps
        return self.seconds / (60 * self.settings.minutes)

    def advance(self) -> float:
        """Trains one step and returns its loss in nats.

        Raises:
            CharLMError: when the loss or its gradient is not finite; the weights are as they were.
        """
        began = time.perf_counter()
        T = self.settings.seq_length
        chunk = self.step % (self.streams.n // T)
        if chunk == 0:
            self.state = None  # the streams start again
        x, y = self.streams.chunk(chunk * T, T)
        learning_rate = self.settings.learning_rate * (1 + math.cos(math.pi * min(self.progress(), 1))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        grad_clip, dtype = self.settings.grad_clip, self.settings.autocast_dtype()
        loss, self.state = train_step(self.model, self.optimizer, x, y, self.state, grad_clip, dtype)
        self.step += 1
        self.losses.append(loss)
        self.seconds = time.perf_counter() - self.started
        self.step_seconds = time.perf_counter() - began
        return loss

    def validate(self, whole: bool) -> None:
        """Adds to the metrics: the mean loss in nats since the last time, and that of the validation text.

        Args:
            whole: read all of the validation text, not VAL_CHARS spread over it.
        """
        metrics = {"step": self.step, "seconds": self.seconds, "train": sum(self.losses) / len(self.losses)}
        if self.val_streams:
            T, dtype = self.settings.seq_length, self.settings.autocast_dtype()
            steps = None if whole else math.ceil(VAL_CHARS / self.settings.batch_size)
            metrics["val"] = evaluate(self.model, self.val_streams, T, dtype, steps)
        self.metrics.append(metrics)
        self.losses = []

    def sample(self) -> str:
        """What the model writes by now; leaves the random state of the training alone."""
        self.model.eval()
        length, temperature = self.settings.sample_length, self.settings.temperature
        return "".join(write(self.model, self.text.vocab, b"", length, temperature, self.settings.seed))

    def checkpoint(self) -> Checkpoint:
        """All that the run needs to go on as if it had never stopped."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in values.items()}
        if self.state:
            tensors |= {"state.h": self.state[0], "state.c": self.state[1]}
        tensors["random"] = torch.get_rng_state()
        return Checkpoint(
            self.settings, self.text.vocab, self.text.sha256, self.step, self.seconds, self.metrics, tensors
        )

    @classmethod
    def resumed(cls, folder: str, settings: Settings, text: Corpus) -> "Run":
        """A run exactly as it was saved, but for settings that are not FIXED.

        Raises:
            CharLMError: when FIXED settings or the text differ, or the checkpoint is damaged.
        """
        saved = checkpoint.load(folder)
        before, now = asdict(saved.settings), asdict(settings)
        for name in FIXED:
            if now[name] != before[name]:
                flag = f"--{name.replace('_', '-')}"
                raise CharLMError(f"{flag} must stay {before[name]!r} with --resume, got {now[name]!r}")
        if text.sha256 != saved.text_sha256:
            raise CharLMError(f"the text must be that of {folder}, got another ({text.name})")
        run = cls(settings, text)
        run.step, run.metrics = saved.step, saved.metrics
        run.seconds, run.started = saved.seconds, time.perf_counter() - saved.seconds
        try:
            run.model.load_state_dict(saved.part("model."))
            values: dict[int, dict[str, Tensor]] = {}
            for name, tensor in saved.part("optimizer.").items():
                i, _, key = name.partition(".")
                values.setdefault(int(i), {})[key] = tensor
            groups = run.optimizer.state_dict()["param_groups"]
            run.optimizer.load_state_dict({"state": values, "param_groups": groups})
            if "state.h" in saved.tensors:
                run.state = saved.tensors["state.h"], saved.tensors["state.c"]
            torch.set_rng_state(saved.tensors["random"])
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise CharLMError(f"{folder} is damaged: {' '.join(str(error).split())}") from None
        return run


def train_step(
    model: CharLM,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    state: State | None,
    grad_clip: float,
    dtype: torch.dtype,
) -> tuple[float, State]:
    """One step of the optimizer on one chunk.

    Args:
        x, y: inputs and targets [T, B], int64.
        state: h and c [L, B, H] from the chunk before; None for zeros.
        grad_clip: largest norm of all gradients together.
        dtype: of the arithmetic; float32, or by autocast one of 16 bits.

    Returns:
        The mean loss in nats, and h and c for the next chunk, cut from the graph.

    Raises:
        CharLMError: when the loss or the gradient is not finite; the weights are as they were.
    """
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        logits, (h, c) = model(x, state)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    if not math.isfinite(loss.item() + norm.item()):
        found = f"the loss is {loss.item():g}, the gradient's norm {norm.item():g}"
        raise CharLMError(f"{found}: try a lower --learning-rate (the last checkpoint is whole)")
    optimizer.step()
    return loss.item(), (h.detach(), c.detach())


@torch.inference_mode()
def evaluate(model: CharLM, streams: Streams, T: int, dtype: torch.dtype, steps: int | None = None) -> float:
    """Mean loss in nats over the streams, T steps at a time with the state carried over.

    Args:
        T: length of a chunk; it does not change the result.
        dtype: of the arithmetic.
        steps: how far to read each stream, in whole chunks; to its end by default.
    """
    model.eval()
    state, total, n = None, 0.0, 0
    for x, y in streams.chunks(T, steps):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, state = model(x, state)
        total += F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction="sum").item()
        n += y.numel()
    return total / n


def _pause_due(step: int, every: int) -> bool:
    doublings, rest = divmod(step, FIRST_PAUSE)
    return step % every == 0 or (step < every and rest == 0 and doublings.bit_count() == 1)


def _settled(settings: Settings, text: Corpus, report: Report) -> Settings:
    """The settings of a new run: a batch and length that its text can fill."""
    B, T = settings.batch_size, settings.seq_length
    fitted_B, fitted_T = corpus.fit(len(text.split(settings.val_fraction)[0]), B, T)
    if (fitted_B, fitted_T) != (B, T):
        report.say(f"{text.name} is short: batch size {B} -> {fitted_B}, sequence length {T} -> {fitted_T}")
    return replace(settings, batch_size=fitted_B, seq_length=fitted_T)


def _new_folder(settings: Settings, text: Corpus) -> Path:
    """Where a new run goes: never over another run."""
    if settings.out:
        if checkpoint.exists(settings.out):
            raise CharLMError(f"--out must be a new folder, {settings.out} holds a run (see --resume)")
        return Path(settings.out)
    names = (Path("runs", text.name if i == 1 else f"{text.name}-{i}") for i in count(1))
    return next(folder for folder in names if not checkpoint.exists(folder))
