"""SIGTERM and Ctrl-C: the work stops where it is, what was done stays, and the exit status tells of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OURS: list[object] = []  # the handler that was set last
_LAST: list["Stopped"] = []  # what it raised, or would have


class Stopped(BaseException):
    """What a signal raises in the main thread, wherever that is. No error, so that `except Exception` lets it pass.

    Attributes:
        number: of the signal.
        where: what was being done; whoever knows it best says so first.
    """

    def __init__(self, number: int, where: str = "") -> None:
        super().__init__(number, where)
        self.number, self.where = number, where

    @property
    def status(self) -> int:
        """The exit status that a shell, Slurm and systemd read as "stopped by this signal": 143 or 130."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}{f' in: {self.where}' if self.where else ''}"


def stop_on_signals(first: Callable[[int], str] = lambda _: "", again: signal.Handlers = signal.SIG_DFL) -> None:
    """From now on SIGTERM and Ctrl-C raise `Stopped`.

    Args:
        first: called with the signal before it is raised, to pass it on; what it returns is where the work stopped.
        again: what a second signal does: SIG_DFL ends the process at once, SIG_IGN nothing.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, again)
        where = first(number)
        _LAST[:] = [Stopped(number, where)]
        raise KeyboardInterrupt if where else _LAST[0]  # of a sweep with workers: Ray's C++ lets no other through

    if threading.current_thread() is threading.main_thread():  # no other may set them
        for each in SIGNALS:
            signal.signal(each, stop)
        _OURS[:] = [stop]


def last(raised: BaseException) -> Stopped:
    """The `Stopped` behind what a signal raised."""
    return raised if isinstance(raised, Stopped) else _LAST[0] if _LAST else Stopped(signal.SIGINT)


def are_set() -> bool:
    """Whether it is `Stopped` that they raise in this process; a launcher's workers have handlers of their own."""
    return signal.getsignal(signal.SIGTERM) in _OURS


@contextmanager
def held_back() -> Iterator[None]:
    """Inside the `with` block they wait, for this thread; processes that are started there never hear them at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """From now on they do nothing: the process ends anyway, and has said why."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
