"""The trainer: truncated back-propagation through time over streams of text, the state carried over."""

import shlex
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path

from rich.console import Console

from fusedlstm.charlm import checkpoint, corpus
from fusedlstm.charlm.corpus import Corpus
from fusedlstm.charlm.distributed import Group, group
from fusedlstm.charlm.report import Report
from fusedlstm.charlm.run import Diverged, Run
from fusedlstm.charlm.settings import CharLMError, Settings
from fusedlstm.charlm.streams import fit
from fusedlstm.charlm.watch import Watcher, Watchers

FIRST_PAUSE = 100  # steps; the next come after twice that, four times, ... until every save_every
LOG_EVERY = 20  # steps between lines of metrics.jsonl
ROLLBACKS = 8  # with no checkpoint in between: then something else is wrong


def train(
    settings: Settings, resume: str = "", stop: Callable[[], bool] = lambda: False, which: str | int = "last"
) -> Path:
    """Trains a model, or goes on with a run, and keeps its checkpoints.

    Args:
        settings: all of the run; with resume, the saved settings, of which all but FIXED may differ.
        resume: folder of the run to go on with.
        stop: asked between steps; a true answer ends the run early, saved.
        which: the checkpoint to go on from.

    Returns:
        The folder of the run.

    Raises:
        CharLMError: when text, settings, checkpoint or disk do not serve, or the loss is not finite whatever
            the learning rate.
    """
    text = corpus.load(settings)
    # A run can be resumed from any folder.
    settings = replace(settings, files=tuple(str(Path(file).resolve()) for file in settings.files))
    with group(settings) as processes, Report(_console(processes)) as report:
        if resume:
            folder = Path(resume)
            run = Run.resumed(checkpoint.load(resume, which), settings, text, processes)
        else:
            folder = _new_folder(settings, text)
            run = Run(_settled(settings, text, report), text, processes)
        processes.wait()  # all have found the folder as it was
        with checkpoint.locked(folder) if processes.leads else nullcontext():
            _keep(run, folder)  # a disk that refuses should say so before the work
            report.say(run.describe())
            _train(run, folder, report, stop)
        report.say(f"saved in {folder} after step {run.step}, {run.seconds / 60:.1f} minutes of training")
        report.say(f"  to let it write: fusedlstm sample {shlex.quote(str(folder))}")
        report.say(f"  to train it on:  fusedlstm train --resume {shlex.quote(str(folder))} {_more(run)}")
    return folder


def _train(run: Run, folder: Path, report: Report, stop: Callable[[], bool]) -> None:
    """Trains to the end, or until stopped; a run that diverges goes back and on more slowly."""
    for attempt in count(1):
        followers = Watchers(run.settings, folder, run.step, report.say) if run.group.leads else Watcher()
        begun = run.step
        try:
            with closing(followers):
                _go_on(run, folder, followers, report, stop)
            return
        except Diverged as error:
            saved = checkpoint.load(folder)
            if saved.step == begun and attempt > ROLLBACKS:
                raise CharLMError(f"{error}, even at {run.rate_scale:g} times the learning rate") from None
            run.roll_back(saved)
            report.say(f"{error}: back to step {run.step}, at {run.rate_scale:g} times the learning rate")


def _go_on(run: Run, folder: Path, watcher: Watcher, report: Report, stop: Callable[[], bool]) -> None:
    done = run.progress() >= 1
    while not done and not run.group.agreed(stop()):
        loss = run.advance()
        done = run.progress() >= 1
        report.update(run.step, run.progress(), loss, run.chars_per_step, run.step_seconds)
        if done or _pause_due(run.step, run.settings):
            run.validate(whole=done)
            watcher.metrics(run.step, run.metrics[-1])  # first: what a checkpoint holds, the file tells, too
            _keep(run, folder)
            sample = run.sample()
            watcher.sample(run.step, sample)
            report.pause(run.metrics[-1], sample)
        elif run.step % LOG_EVERY == 0:
            watcher.metrics(run.step, run.figures())
    _keep(run, folder)


def _keep(run: Run, folder: Path) -> None:
    """Saves a checkpoint; all processes of a run have a part in it, one writes it."""
    kept = run.checkpoint()
    if run.group.leads:
        checkpoint.save(folder, kept)
    run.group.wait()


def _pause_due(step: int, settings: Settings) -> bool:
    doublings, rest = divmod(step, FIRST_PAUSE)
    early = step < settings.save_every and rest == 0 and doublings.bit_count() == 1
    return early or step % settings.save_every == 0 or step in settings.sample_at


def _settled(settings: Settings, text: Corpus, report: Report) -> Settings:
    """The settings of a new run: a batch and length that its text can fill."""
    B, T = settings.batch_size, settings.seq_length
    fitted_B, fitted_T = fit(text.split(settings).train, B, T)
    if (fitted_B, fitted_T) != (B, T):
        report.say(f"{text.name} is short: batch size {B} -> {fitted_B}, sequence length {T} -> {fitted_T}")
    return replace(settings, batch_size=fitted_B, seq_length=fitted_T)


def _more(run: Run) -> str:
    """The flag that makes a run twice as long."""
    for name in ("steps", "epochs"):
        if (value := getattr(run.settings, name)) is not None:
            return f"--{name} {2 * value:g}"
    return f"--minutes {2 * run.settings.minutes:g}"


def _console(processes: Group) -> Console | None:
    """Where to report: nowhere, but for the process that talks for all."""
    return None if processes.leads else Console(quiet=True)


def _new_folder(settings: Settings, text: Corpus) -> Path:
    """Where a new run goes: never over another run."""
    if settings.out:
        if checkpoint.exists(settings.out):
            raise CharLMError(f"--out must be a new folder, {settings.out} holds a run (see --resume)")
        return Path(settings.out)
    names = (Path("runs", text.name if i == 1 else f"{text.name}-{i}") for i in count(1))
    return next(folder for folder in names if not checkpoint.exists(folder))
