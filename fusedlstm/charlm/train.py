"""The trainer: truncated back-propagation through time over streams of text, the state carried over."""

import io
import shlex
from collections.abc import Callable
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
from fusedlstm.charlm.watch import Watchers

FIRST_PAUSE = 100  # steps; the next come after twice that, four times, ... until every save_every
LOG_EVERY = 20  # steps between lines of metrics.jsonl
ROLLBACKS = 8  # in a row, with no checkpoint in between: then something else is wrong


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
        with checkpoint.locked(folder, processes.leads):
            _train(run, folder, report, stop)
    return folder


def _train(run: Run, folder: Path, report: Report, stop: Callable[[], bool]) -> None:
    leads, agreed = run.group.leads, run.group.agreed
    keep(run, folder)  # a disk that refuses should say so before the work
    report.say(run.describe())
    rollbacks = 0
    with Watchers(folder, run.settings, run.step, report.say) if leads else nothing() as watchers:
        done = run.progress() >= 1
        while not done and not agreed(stop()):
            try:
                loss = run.advance()
            except Diverged as error:
                rollbacks += 1
                if rollbacks > ROLLBACKS:
                    raise CharLMError(f"{error}, even at {run.rate_scale:g} times the learning rate") from None
                run.roll_back(checkpoint.load(folder))
                report.say(f"{error}: back to step {run.step}, at {run.rate_scale:g} times the learning rate")
                continue
            done = run.progress() >= 1
            report.update(run.step, run.progress(), loss, run.chars_per_step, run.step_seconds)
            if run.step % LOG_EVERY == 0:
                watchers.metrics(run.step, run.figures())
            if done or _pause_due(run.step, run.settings):
                run.validate(whole=done)
                keep(run, folder)
                rollbacks = 0
                sample = run.sample()
                watchers.metrics(run.step, run.metrics[-1])
                watchers.sample(run.step, sample)
                report.pause(run.metrics[-1], sample)
        keep(run, folder)
