"""The interface of a tracker, and the trackers of an experiment."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core import plugins

FOLDER = "mmjax.runs.trackers"


class Tracker(abc.ABC):
    """Receives the metrics of a run, in process 0 alone. It must not end the run: it drops what it cannot write.

    Args:
        workdir: The run folder.
        resume_step: The step of the checkpoint that the run resumes from, or -1; later steps come again.
        config: The experiment as nested dictionaries.
    """

    @abc.abstractmethod
    def __init__(self, workdir: Path, *, resume_step: int, config: Mapping[str, Any]): ...

    @classmethod
    def check(cls) -> None:
        """Raises ConfigError if the tracker cannot be used on this machine."""
        return None

    @abc.abstractmethod
    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a step."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the record; nothing is written after it."""


def load_trackers(names: Sequence[str]) -> list[type[Tracker]]:
    """The classes of the trackers of those names; raises ConfigError for one that cannot be used here."""
    trackers = [plugins.load_class(FOLDER, "Tracker", name, path="log.trackers") for name in names]
    for tracker in trackers:
        tracker.check()
    return trackers


def open_trackers(names: Sequence[str], workdir: Path, *, resume_step: int, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of those names, opened for a run."""
    return [tracker(workdir, resume_step=resume_step, config=config) for tracker in load_trackers(names)]
