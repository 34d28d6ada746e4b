"""What watches the losses: rejected updates are counted, too many in a row end the run, a spike takes it back."""

from __future__ import annotations

import collections
import logging
import math
import statistics
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from mmjax.core.state import Params, TrainState
from mmjax.experiment import Experiment
from mmjax.train.optim import updates_done

logger = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """The loss or its gradient stopped being a number."""


class Spike(Exception):
    """The loss of ``step`` is so bad that training is to go back to before it."""

    def __init__(self, message: str, *, step: int):
        super().__init__(message)
        self.step = step


class Guard:
    """Judges each step's numbers, in the order of the steps.

    A step whose update was rejected is logged (the first one, then each tenth power), and ``guard.max_rejected`` of
    them in a row raise Diverged. A loss above ``guard.spike_factor`` times the median of the last
    ``guard.spike_window`` ones raises Spike, as do rejected ones in a row, while there are ``rewinds_left``.
    """

    def __init__(
        self,
        settings: Experiment,
        *,
        losses: Sequence[float] = (),
        rewinds_left: int = 0,
    ):
        """``losses`` are those that the guard of the run's earlier part had kept."""
        self._settings = settings
        self._rewinds_left = rewinds_left
        self._losses = collections.deque(losses, maxlen=settings.guard.spike_window)
        self._within_spike = False
        self.streak = 0
        """How many of the last updates were rejected, without one between them that was not."""

    @property
    def losses(self) -> list[float] | None:
        """What the next start must know to judge as this guard would; None where it judges no loss by others."""
        return None if self._settings.guard.spike_factor is None else list(self._losses)

    def check(self, step: int, params: Params) -> None:
        """Raises where it is the parameters that are no numbers: nothing more can come of them.

        Looks at them only where updates were rejected; every process must ask.
        """
        if self.streak and not all_finite(params):
            raise Diverged(f"the parameters are not finite at step {step}; {self._way_out(step)}")

    def judge(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one step; raises where training must not just go on."""
        if metrics["train/rejected_update"]:
            self.streak += 1
            self._rejected(step, metrics)
        else:
            self.streak = 0
            self._compare(step, metrics["train/loss"])

    def _rejected(self, step: int, metrics: Mapping[str, float]) -> None:
        allowed, count = self._settings.guard.max_rejected, round(metrics["train/rejected_updates"])
        what = f"the loss is {metrics['train/loss']} and its gradient's norm {metrics['train/gradient_norm']}"
        others = [
            key.removesuffix("/gradient_norm").replace("augment/", "augment.", 1)
            for key, value in metrics.items()
            if key.startswith("augment/") and key.endswith("/gradient_norm") and not math.isfinite(value)
        ]
        if others:
            what += f" (that of {', '.join(others)} too)"
        if self.streak >= allowed:
            if self._rewinds_left:
                raise Spike(f"{what} at step {step}, the {_th(self.streak)} in a row", step=step)
            raise Diverged(f"{what} at step {step}; {self._way_out(step)}")
        if count == 10 ** (len(str(count)) - 1):
            total = f", the {_th(count)} of this run" if count > 1 else ""
            logger.info(
                f"step {step:,}: {what}: the update is rejected{total}; "
                f"guard.max_rejected={allowed} in a row end the run"
            )

    def _way_out(self, step: int) -> str:
        settings = self._settings
        good = step - self.streak
        precision = ", train in precision='float32'" if settings.precision != "float32" else ""
        switch = ", or in this one with augmentations switched off or of less weight" if settings.augment else ""
        return (
            f"start anew with a lower optimizer.learning_rate ({settings.optimizer.learning_rate}), longer "
            f"optimizer.warmup_steps ({settings.optimizer.warmup_steps}){precision} in another run folder{switch}. "
            f"The last update that went through is that of step {good}: from there the same command would come to the "
            f"same steps, and stop again unless guard.max_rejected is above {settings.guard.max_rejected}"
        )

    def _compare(self, step: int, loss: float) -> None:
        spike, window = self._settings.guard.spike_factor, self._losses.maxlen
        if spike is None:
            return
        median = statistics.median(self._losses) if len(self._losses) == window else math.inf
        if loss > spike * median:
            what = f"the loss is {loss:.4g} at step {step}, {loss / median:.3g} times the last {window} losses' median"
            if self._rewinds_left:
                raise Spike(what, step=step)
            if not self._within_spike:
                logger.info(
                    f"{what}; guard.max_rewinds={self._settings.guard.max_rewinds} are used up, so training goes on"
                )
            self._within_spike = True
        else:
            self._within_spike = False
        self._losses.append(loss)


def all_finite(params: Params) -> bool:
    """Whether all parameters are numbers; every process must ask."""
    with jax.transfer_guard("allow"):
        return bool(_all_finite(params))


def rejected_updates(state: TrainState) -> int:
    """How many of the state's steps changed nothing."""
    done, updates = jax.device_get((state.step, updates_done(state.opt_state)))
    return int(done) - int(updates)


@jax.jit
def _all_finite(params: Params) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _th(number: int) -> str:
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{last}"
