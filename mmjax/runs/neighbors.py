"""The neighbors that a run finds among its own examples, and the files in which they survive a kill."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jax.experimental import multihost_utils

from mmjax.checkpoints import location
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved, explain
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.data.clusters.table import Clusters, read_clusters
from mmjax.data.source import Source
from mmjax.parallel import collectives

logger = logging.getLogger(__name__)

FOLDER = "neighbors"


class NeighborSnapshots:
    """The neighbors that batches are made of at each step: those of ``data.clusters.path``, then those of each refresh.

    A refresh after step s writes ``neighbors/S.parquet``, a table as ``mmjax neighbors`` writes it, before the
    checkpoint of step s is saved. So for every checkpoint the table is there of which the next batches are made, and a
    run that was killed in a refresh does it again. All processes have the same; process 0 has the files.

    Args:
      workdir: the run folder.
      directory: ``CheckpointConfig.directory``; if set, the tables lie there.
      initial: the neighbors before the first refresh.
      source: the examples.
      find: the table of neighbors by some parameters; every process calls it.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        directory: str | None,
        initial: Clusters,
        source: Source,
        find: Callable[[Any], pa.Table],
    ):
        folder = epath.Path(workdir) if directory is None else location.resolve_directory(workdir, directory)
        self._folder = folder / FOLDER
        self.config, self._initial, self._source, self._find = initial.config, initial, source, find
        self._step: int | None = None
        self._content = b""  # of that step's table, in process 0
        self.current = initial
        """What the next batch is made of."""

    def resume(self, step: int, params: Any) -> bool:
        """Takes what was in force after ``step``, whose parameters are ``params``; whether it had to be found."""
        last = self.config.last_refresh(step)
        if last is None:
            self._step, self.current = None, self._initial
            return False
        if last == self._step:
            return False
        # A start does not trust what it finds, and a run that ended at a refresh and now goes on has not done it yet.
        if step > 0 and (last < step or collectives.broadcast(self._path(step).exists())):
            problem = self._read(last)
            if problem is None:
                return False
            if last < step:
                raise ConfigError(
                    f"{problem}; the run goes on from these neighbors alone: restore the file, or start in another "
                    "folder"
                )
            logger.warning("%s; the neighbors are found again, because the weights of that step are here", problem)
        self.refresh(step, params, saved=())
        return True

    def refresh(self, step: int, params: Any, *, saved: Sequence[int]) -> None:
        """Finds the neighbors by ``params``; those that no checkpoint of the steps ``saved`` needs are deleted."""
        table = self._find(params)
        if collectives.is_main_process():
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="none", use_dictionary=False)
            self._write(step, sink.getvalue().to_pybytes())
            self._delete_unneeded(saved)
        problem = self._read(step)
        if problem is not None:
            raise ConfigError(problem)

    def restore(self) -> None:
        """Writes the table in force again if it was deleted."""
        if self._step is not None and collectives.is_main_process() and not self._path(self._step).exists():
            self._write(self._step, self._content)

    def _path(self, step: int) -> epath.Path:
        return self._folder / f"{step}.parquet"

    def _write(self, step: int, content: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(step), content, sync=True)
        except OSError as error:
            raise CheckpointNotSaved(
                f"{FOLDER}/{step}.parquet could not be written ({explain(error)}); make room and run the same command "
                "again"
            ) from error

    def _read(self, step: int) -> str | None:
        """Takes the table of ``step`` from process 0, or says in every process what is wrong with it."""
        clusters, problem = self._initial, None
        if collectives.is_main_process():
            config = dataclasses.replace(self.config, path=str(self._path(step)), id=None)
            try:
                clusters = read_clusters(config, self._source)
                self._content = self._path(step).read_bytes()
            except ConfigError as error:
                problem = str(error)
        neighbors = clusters.neighbors
        id, width, problem = collectives.all_gather([clusters.config.id, neighbors.shape[1], problem])[0]
        if problem is not None:
            return problem
        if jax.process_count() > 1:
            if not collectives.is_main_process():
                neighbors = np.zeros((len(self._source), width), np.int32)
            neighbors = np.asarray(multihost_utils.broadcast_one_to_all(neighbors))
        self._step = step
        self.current = Clusters(config=dataclasses.replace(self.config, id=id), neighbors=neighbors)
        return None

    def _delete_unneeded(self, saved: Sequence[int]) -> None:
        """Deletes the tables that no saved checkpoint goes on from; one in progress is of a later step."""
        needed = {self.config.last_refresh(other) for other in saved}
        latest = self.config.last_refresh(max(saved, default=0)) or 0
        for path in self._folder.iterdir():
            is_old = path.stem.isdigit() and int(path.stem) < latest and int(path.stem) not in needed
            if is_old or path.suffix == ".tmp":  # of a start that was killed
                path.unlink(missing_ok=True)
