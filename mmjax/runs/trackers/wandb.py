"""Weights & Biases; needs ``pip install 'mmjax[wandb]'`` and, unless ``WANDB_MODE=offline``, an account."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.runs.trackers.common import base

logger = logging.getLogger(__name__)

ID_FILE = "wandb_run_id"


class Tracker(base.Tracker):
    """Logs to one W&B run for each run folder, also after a restart.

    W&B's own variables choose project, entity and mode (``WANDB_PROJECT``, ``WANDB_ENTITY``, ``WANDB_MODE``); the
    project is ``mmjax`` if none is set. Metrics have the axis ``step``, so that steps that run again after a restart
    are not refused. If logging fails, a warning says so once and the run goes on.
    """

    def __init__(self, workdir: Path, *, resume_step: int = -1, config: Mapping[str, Any] | None = None):
        wandb = importlib.import_module("wandb")
        id_file = workdir / ID_FILE
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex)
        self._failed = False
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mmjax"), id=id_file.read_text(), resume="allow",
                dir=str(workdir), name=workdir.name, config=dict(config or {}),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            raise ConfigError(
                f"log.trackers='wandb': W&B cannot be reached ({error}); run 'wandb login' or set WANDB_MODE=offline"
            ) from error

    @classmethod
    def check(cls) -> None:
        """Raises ConfigError if the package wandb is missing."""
        if importlib.util.find_spec("wandb") is None:
            raise ConfigError(
                "log.trackers='wandb': wandb is missing; pip install 'mmjax[wandb]' or leave the tracker out"
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs all metrics of a step at once."""
        if self._failed:
            return
        try:
            self._run.log({"step": step, **metrics})
        except Exception as error:
            self._failed = True
            logger.warning(f"W&B gets no more metrics of this run ({type(error).__name__}: {error})")

    def close(self) -> None:
        """Ends the W&B run."""
        try:
            self._run.finish()
        except Exception as error:
            logger.warning(f"the W&B run could not be finished ({type(error).__name__}: {error})")
