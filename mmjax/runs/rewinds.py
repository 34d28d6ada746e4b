"""Rewinds of a run after loss spikes, and the batch that each step therefore trains on."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mmjax.checkpoints import location
from mmjax.checkpoints.orbax_errors import CheckpointNotSaved, explain
from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError
from mmjax.core.files import read_json
from mmjax.parallel import collectives

FILE = "rewinds.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind:
    """After a loss spike at ``spike_step`` the run returned to ``restored_step`` and skipped some batches."""

    spike_step: int
    restored_step: int
    skipped_batches: int


class Rewinds:
    """The rewinds of a run, kept in ``rewinds.json``, from which a resumed run knows which batches to skip.

    Returning to a state before the spike and skipping the batches in between follows Chowdhery et al. 2022 (PaLM,
    arXiv:2204.02311, section 5.1). With ``skipped_r`` batches skipped at rewind ``r``, the step after step t trains on
    batch ``t + Σ_r skipped_r [restored_r <= t]``, which depends on the step alone. A rewind to before an earlier one
    replaces it.

    Args:
      workdir: the run folder.
      directory: ``CheckpointConfig.directory``; if set, the file lies there.
    """

    def __init__(self, workdir: str | Path, *, directory: str | None = None):
        folder = epath.Path(workdir) if directory is None else location.resolve_directory(workdir, directory)
        self._path = folder / FILE
        # Only process 0 reads the file; on other machines it may not be visible yet.
        entries = [dataclasses.asdict(rewind) for rewind in _read(self._path)] if collectives.is_main_process() else []
        self.all: Sequence[Rewind] = [Rewind(**entry) for entry in collectives.all_gather(entries)[0]]

    def next_batch(self, step: int) -> int:
        """Returns the number of the batch that the step after ``step`` trains on."""
        return step + sum(rewind.skipped_batches for rewind in self._in_force() if rewind.restored_step <= step)

    def next_rewind(self, step: int) -> int:
        """Returns the first later step after which batches are skipped; ``sys.maxsize`` if there is none."""
        later = (rewind.restored_step for rewind in self._in_force() if rewind.restored_step > step)
        return min(later, default=sys.maxsize)

    def choose_step(self, spike_step: int, *, saved: Sequence[int]) -> int:
        """Returns the saved step to restore after a spike; 0, the start, if none precedes it.

        This is the latest one that no earlier rewind has restored, or the latest one if all have been restored.
        """
        earlier = [step for step in saved if step < spike_step]
        restored = {rewind.restored_step for rewind in self.all}
        return max([step for step in earlier if step not in restored] or earlier, default=0)

    def add(self, *, spike_step: int, restored_step: int) -> Rewind:
        """Skips the batches up to that of the spike; returns when this is on disk. Every process must call it."""
        skipped = sum(rewind.skipped_batches for rewind in self._in_force() if rewind.restored_step <= restored_step)
        added = Rewind(
            spike_step=spike_step,
            restored_step=restored_step,
            skipped_batches=self.next_batch(spike_step - 1) + 1 - restored_step - skipped,
        )
        self.all = [*self.all, added]
        self._write()
        collectives.barrier("rewind")
        return added

    def restore(self) -> None:
        """Writes the file again if it was deleted."""
        if self.all and not self._path.exists():
            self._write()

    def _write(self) -> None:
        if not collectives.is_main_process():
            return
        text = json.dumps([dataclasses.asdict(rewind) for rewind in self.all], indent=2) + "\n"
        try:
            write_atomically(self._path, text)
        except OSError as error:
            raise CheckpointNotSaved(
                f"{FILE} could not be written ({explain(error)}); make room and run the same command again"
            ) from error

    def _in_force(self) -> list[Rewind]:
        rewinds: list[Rewind] = []
        for rewind in self.all:
            rewinds = [*(other for other in rewinds if other.restored_step <= rewind.restored_step), rewind]
        return rewinds


def _read(path: epath.Path) -> list[Rewind]:
    try:
        entries = read_json(path)
        rewinds = [Rewind(**entry) for entry in entries]
        if not all(type(n) is int and n >= 0 for rewind in rewinds for n in vars(rewind).values()):
            raise ValueError("its values are not non-negative integers")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, OSError) as error:
        # Without it the run would train on batches that it must skip.
        raise ConfigError(f"{path} is damaged ({error}); restore it or start from scratch") from None
    return rewinds
