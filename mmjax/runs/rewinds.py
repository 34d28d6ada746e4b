"""The times a run went back to before a loss spike, and which batch each of its steps therefore trains on."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from mmjax.checkpoints import location, orbax_errors
from mmjax.checkpoints.orbax_errors import NotSaved
from mmjax.core.config import ConfigError
from mmjax.parallel import collectives

FILE = "rewinds.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewind:
    """At the loss of step ``spike`` the run went back to the state ``after`` a step, and past ``skipped`` batches."""

    spike: int
    after: int
    skipped: int


class Rewinds:
    """Keeps ``workdir/rewinds.json``, from which any start knows which batches to leave out.

    Going back to a state before the spike and past the batches between the two is what Chowdhery et al. 2022 did
    (PaLM, arXiv:2204.02311, section 5.1). With ``skipped_r`` batches left out at rewind ``r``, the step that follows
    step t is trained on batch ``t + Σ_r skipped_r [after_r <= t]``: still a function of the step alone. A rewind to
    before an earlier one takes that one's place.
    """

    def __init__(self, workdir: str | Path, *, directory: str | None = None):
        """``directory``, as in ``CheckpointConfig``: the file lies with the checkpoints that are not in ``workdir``."""
        self._path = (epath.Path(workdir) if directory is None else location.locate(workdir, directory)) / FILE
        # Others than the first process need not see it, or not yet as it is.
        found = [dataclasses.asdict(rewind) for rewind in _read(self._path)] if collectives.is_main_process() else []
        self.all: Sequence[Rewind] = [Rewind(**entry) for entry in collectives.all_gather(found)[0]]

    def batch_after(self, step: int) -> int:
        """The number of the batch that the step after ``step`` is trained on."""
        return step + sum(rewind.skipped for rewind in self._in_force() if rewind.after <= step)

    def next_after(self, step: int) -> int:
        """The first later step after which batches are left out; far away if there is none."""
        return min((rewind.after for rewind in self._in_force() if rewind.after > step), default=sys.maxsize)

    def goal(self, spike: int, *, saved: Sequence[int]) -> int:
        """Which of the ``saved`` steps to go back to from a spike; 0, the start, if there is none before it.

        The last one, but a state that an earlier rewind went back to in vain is taken again only where it is the first.
        """
        before = [step for step in saved if step < spike]
        tried = {rewind.after for rewind in self.all}
        return max([step for step in before if step not in tried] or before, default=0)

    def add(self, *, spike: int, after: int) -> Rewind:
        """Has batches after ``after`` start with the one that follows the spike's; returns when that is on disk.

        Every process must come here.
        """
        kept = sum(rewind.skipped for rewind in self._in_force() if rewind.after <= after)
        added = Rewind(spike=spike, after=after, skipped=self.batch_after(spike - 1) + 1 - after - kept)
        self.all = [*self.all, added]
        if collectives.is_main_process():
            text = json.dumps([dataclasses.asdict(rewind) for rewind in self.all], indent=2) + "\n"
            try:
                location.write_whole(self._path, text)
            except OSError as error:
                raise NotSaved(
                    f"{FILE} could not be written ({orbax_errors.reason(error)}); make room and run the same command "
                    "again"
                ) from error
        collectives.barrier("rewind")
        return added

    def _in_force(self) -> list[Rewind]:
        rewinds: list[Rewind] = []
        for rewind in self.all:
            rewinds = [*(earlier for earlier in rewinds if earlier.after <= rewind.after), rewind]
        return rewinds


def _read(path: epath.Path) -> list[Rewind]:
    try:
        entries = json.loads(path.read_text())
        rewinds = [Rewind(**entry) for entry in entries]
        if not all(type(n) is int and n >= 0 for rewind in rewinds for n in vars(rewind).values()):
            raise ValueError("its numbers are not whole ones from 0 on")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        # Without it the run would go on with batches that it is to leave out.
        raise ConfigError(f"{path} is damaged ({error}); restore it or start afresh") from None
    return rewinds
