"""The times a run went back to before a loss spike, and which batch each of its steps therefore trains on."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmjax.config import ConfigError
from mmjax.parallel import distributed

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

    def __init__(self, workdir: str | Path):
        self._path = Path(workdir) / FILE
        self.all: Sequence[Rewind] = _read(self._path)

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
        if distributed.is_first():
            _write(self._path, self.all)
        distributed.meet("rewind")
        return added

    def _in_force(self) -> list[Rewind]:
        rewinds: list[Rewind] = []
        for rewind in self.all:
            rewinds = [*(earlier for earlier in rewinds if earlier.after <= rewind.after), rewind]
        return rewinds


def _read(path: Path) -> list[Rewind]:
    try:
        entries = json.loads(path.read_text())
        rewinds = [Rewind(**entry) for entry in entries]
        if not all(type(n) is int and n >= 0 for rewind in rewinds for n in vars(rewind).values()):
            raise ValueError("its numbers are not whole ones from 0 on")
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        # Without it the run would go on with batches that it is to leave out.
        raise ConfigError(
            f"--workdir={path.parent}: {path.name} is damaged ({error}); restore it or start afresh"
        ) from None
    return rewinds


def _write(path: Path, rewinds: Sequence[Rewind]) -> None:
    """Atomically, and on disk before any checkpoint that relies on it."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        json.dump([dataclasses.asdict(rewind) for rewind in rewinds], file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
