"""The progress bar of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadgen.targets import target


@contextlib.contextmanager
def showing(out: Console, duration_s: float, title: str) -> Iterator[target.Watch]:
    """Shows a bar on `out` while the block lasts, of a run that takes `duration_s` seconds. It is
    drawn only when the run reports (a refreshing thread would compete with the sender for the
    interpreter), and not at all where nobody watches.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        console=out,
        auto_refresh=False,
        transient=True,
        disable=not out.is_terminal,
    )
    bar.start()
    task = bar.add_task(title or "sending", total=duration_s, counts="")

    def draw(progress: target.Progress) -> None:
        counts = (
            f"{progress.num_sent} sent, {progress.num_in_flight} in flight, "
            f"{progress.num_finished} finished, {progress.num_failed} failed"
        )
        elapsed = min(progress.elapsed_s, duration_s)
        draining = progress.elapsed_s > duration_s
        description = "waiting for the last" if draining else title or "sending"
        bar.update(task, completed=elapsed, description=description, counts=counts)
        bar.refresh()

    def watch(progress: target.Progress) -> None:
        try:
            if not bar.disable:
                draw(progress)
        except OSError:  # the terminal is gone, the run is not
            bar.disable = True

    try:
        yield watch
    finally:
        with contextlib.suppress(OSError):
            bar.stop()
