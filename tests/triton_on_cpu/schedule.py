"""The order in which the programs of a launch run: one at a time, by a seed, at the cost of one of them."""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import triton

_POLLS = 3  # equal ones in a row after which a program is taken to wait
_SWITCHES = 300_000  # after which programs are taken to run in circles; some 10 s


class DeadLockError(RuntimeError):
    """Every program of a launch waits, or none of them gets anywhere."""


class _StoppedError(BaseException):
    """Unwinds the programs that are left when a launch has failed."""


@dataclass(frozen=True)
class Poll:
    """An atomic operation that left its element as it was."""

    name: str
    value: float
    read: Callable[[], float]

    def same(self, other: Poll | None) -> bool:
        return other is not None and (self.name, self.value) == (other.name, other.value)


class _Program:
    """A thread that runs only when it is given its turn."""

    def __init__(self, index: int, body: Callable[[int], None]) -> None:
        self.index = index
        self.done = False
        self.poll: Poll | None = None
        self._polls = 0
        self._body = body
        self._error: BaseException | None = None
        self._stopped = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> None:
        """Runs it up to its next switch or its end, and raises what it raised."""
        self._turn.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def switch(self, poll: Poll | None) -> None:
        """Called by the program itself: gives the turn back."""
        self.count(poll)
        self._back.release()
        self._turn.acquire()
        if self._stopped:
            raise _StoppedError

    def count(self, poll: Poll | None) -> None:
        self._polls = self._polls + 1 if poll is not None and poll.same(self.poll) else 1
        self.poll = poll

    @property
    def waits(self) -> bool:
        """It polls in a loop, and what it polls has not changed."""
        return self.poll is not None and self._polls >= _POLLS and self.poll.read() == self.poll.value

    def stop(self) -> None:
        self._stopped = True
        self._turn.release()
        self._thread.join()

    def where(self) -> str:
        """The line of the kernel that it stands in."""
        frame = sys._current_frames()[self._thread.ident or 0]
        while frame.f_back and _is_machinery(frame.f_code.co_filename):
            frame = frame.f_back
        return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._stopped:
                self._body(self.index)
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        self.done = True
        self._back.release()


def _is_machinery(filename: str) -> bool:
    return filename.startswith((os.path.dirname(__file__), os.path.dirname(triton.__file__))) or (
        filename == threading.__file__
    )


class Schedule:
    """Runs the programs of one launch.

    Args:
        programs: how many there are.
        seed: of all choices.
        together: all are resident at once, as in a cooperative launch; else one runs after another.
    """

    def __init__(self, programs: int, seed: int, together: bool) -> None:
        self._count = programs
        self._random = random.Random(seed)
        self._together = together
        self._current: _Program | None = None
        self._alone: tuple[Poll | None, int] = (None, 0)

    def run(self, body: Callable[[int], None], enter: Callable[[int], None]) -> None:
        """Calls body(program) for every program, and enter(program) each time that its turn comes."""
        if not self._together:
            for index in self._random.sample(range(self._count), self._count):
                enter(index)
                body(index)
            return
        programs = [_Program(index, body) for index in range(self._count)]
        try:
            for program in self._turns(programs):
                self._current = program
                enter(program.index)
                program.resume()
        finally:
            for program in programs:
                if not program.done:
                    program.stop()

    def switch(self, poll: Poll | None) -> None:
        """Called by a running program at an atomic: others may run now. poll: it changed nothing."""
        if self._current is not None:
            self._current.switch(poll)
            return
        last, polls = self._alone
        self._alone = (poll, polls + 1 if poll is not None and poll.same(last) else 1)
        if poll is not None and self._alone[1] >= _POLLS:
            raise DeadLockError(
                f"a program waits for {poll.name} to change from {poll.value}, but no other runs beside it: "
                "launch with launch_cooperative_grid=True"
            )

    def _turns(self, programs: list[_Program]) -> Iterator[_Program]:
        slow = self._random.choice(programs)
        for _ in range(_SWITCHES):
            alive = [program for program in programs if not program.done]
            ready = [program for program in alive if not program.waits]
            if not alive:
                return
            if not ready:
                raise DeadLockError("every program waits:\n" + _states(alive))
            # One program starves for a while, so that the others get as far ahead of it as they can.
            if self._random.random() < 1 / (8 * len(programs)):
                slow = self._random.choice(programs)
            quick = [program for program in ready if program is not slow or self._random.random() < 1 / 64]
            yield self._random.choice(quick or ready)
        raise DeadLockError(f"no end after {_SWITCHES} turns:\n" + _states(alive))


def _states(programs: list[_Program]) -> str:
    lines = []
    for program in programs:
        poll = (
            f", waiting for {program.poll.name} to change from {program.poll.value}" if program.poll else ""
        )
        lines.append(f"program {program.index} at {program.where()}{poll}")
    return "\n".join(lines)
