"""A long run on a terminal: its progress, and Ctrl-C at a moment when the state can be saved."""

import signal
import sys
import threading
from contextlib import contextmanager


@contextmanager
def deferred_interrupts():
    """Yields interrupted(): whether Ctrl-C came. A step is finished first, for half a step cannot be saved.

    A second Ctrl-C interrupts at once. Where signals are not ours to take (another thread, or ignored as under nohup),
    nothing is taken.
    """
    came, usual = [], signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield lambda: False
        return

    def first(*_):
        came.append(True)
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, first)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, usual)


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
