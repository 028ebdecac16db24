"""A long run on a terminal: its progress, and Ctrl-C at a moment when the state can be saved."""

import signal
import sys
import threading
import time
from contextlib import contextmanager


@contextmanager
def deferred_interrupts(*also: int, apart: float = 0.0):
    """Yields interrupted(): whether Ctrl-C came. A step is finished first, for half a step cannot be saved.

    A second Ctrl-C interrupts at once. Where signals are not ours to take (another thread, or ignored as under nohup),
    nothing is taken.

    also: signals that ask for the same, such as SIGTERM of a cluster. apart: seconds within which a second one is the
    first again: a launcher passes on what the terminal has sent to all processes.
    """
    came, usual = [], {number: signal.getsignal(number) for number in (signal.SIGINT, *also)}
    if threading.current_thread() is not threading.main_thread() or not callable(usual[signal.SIGINT]):
        yield lambda: False
        return

    def asked(number, frame):
        came.append(time.monotonic())
        if len(came) > 1 and came[-1] - came[0] >= apart:
            signal.signal(number, usual[number])
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, asked)
    try:
        yield lambda: bool(came)
    finally:
        for number, before in usual.items():
            signal.signal(number, before)


@contextmanager
def progress_display(what, total, done, progress):
    """Yields show(step, row=None): a bar on a terminal, a line per row elsewhere, nothing without `progress`."""
    def text(row):
        return ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("seed", "torch"))

    if not progress or not sys.stderr.isatty():
        yield lambda step, row=None: progress and row and print(text(row), file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:3], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def show(step, row=None):
            if row:
                bar.console.print(text(row), highlight=False)
            bar.update(task, completed=step)

        yield show
