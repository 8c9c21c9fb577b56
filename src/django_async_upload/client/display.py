"""The output of the command line while it runs: progress bars where stderr is a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import (
    Progress as Bars,
)

from .conversation import Progress

_SHOWN = 10
"""Maximum number of bars; of more files, those that started first are shown."""


class Display(logging.Handler):
    """Bars and messages on stderr. It is a logging handler, so that log lines do not overwrite the bars."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[phase]}", markup=False),
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[object, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def show(self, upload: object, name: str, progress: Progress) -> None:
        """Draw the bar of ``upload``."""
        task = self._tasks.get(upload)
        if task is None:
            if len(self._tasks) >= _SHOWN:
                return
            task = self._tasks[upload] = self._bars.add_task(name, total=None, phase="")
        phase = "" if progress.phase == "uploading" else progress.phase
        self._bars.update(task, completed=progress.done, total=progress.total, phase=phase)

    def end(self, upload: object) -> None:
        """Remove the bar of ``upload``."""
        task = self._tasks.pop(upload, None)
        if task is not None:
            self._bars.remove_task(task)

    def say(self, text: str) -> None:
        """Print a line on stderr."""
        self._console.print(text, markup=False)

    def emit(self, record: logging.LogRecord) -> None:
        self.say(f"async-upload: {record.getMessage()}")
