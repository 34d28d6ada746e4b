"""ALBEF: contrast with a queue, matching, and masked words, with soft targets of a moving average."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from mmjax.core.config import Between, Ge
from mmjax.objectives import fusion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(fusion.Objective):
    """``fusion`` with the momentum of ALBEF's pretraining (Li et al. 2021, arXiv:2107.07651)::

        loss = L_itc + L_itm + L_mlm

    Momentum, queue and distillation are those of the paper (section 3.5) and of the released configuration. The code
    raises the distillation over the first epoch; set ``distillation_warmup_steps`` to as many steps. Its queue starts
    as random vectors, here it is empty, and its targets of pretraining are one-hot, so that a copy of an example in
    the queue is its negative, here a positive.

    Args:
        momentum: Decay of the moving average.
        queue_size: Rows of each queue.
        distillation: Weight of the soft targets.
    """

    momentum: Annotated[float, Between(0, 1)] | None = 0.995
    queue_size: Annotated[int, Ge(0)] = 65536
    distillation: Annotated[float, Between(0, 1)] = 0.4
