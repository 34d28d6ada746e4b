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
from mmjax.experiment import GuardConfig, OptimizerConfig
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
        config: GuardConfig,
        *,
        advice: str = "",
        losses: Sequence[float] = (),
        rewinds_left: int = 0,
    ):
        """Args:
        config: When to reject, to go back, and to give up.
        advice: What a user could change after divergence (see ``advise``).
        losses: Those that the guard before this one had kept.
        rewinds_left: How often the run may still go back.
        """
        self._config = config
        self._advice = advice
        self._rewinds_left = rewinds_left
        self._losses = collections.deque(losses, maxlen=config.spike_window)
        self._within_spike = False
        self.streak = 0
        """How many of the last updates were rejected, without one between them that was not."""

    @property
    def losses(self) -> list[float] | None:
        """What the next start must know to judge as this guard would; None where it judges no loss by others."""
        return None if self._config.spike_factor is None else list(self._losses)

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
        allowed, count = self._config.max_rejected, round(metrics["train/rejected_updates"])
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
        good = step - self.streak
        return (
            f"{self._advice}. The last update that went through is that of step {good}: from there the same command "
            f"would come to the same steps, and stop again unless guard.max_rejected is above "
            f"{self._config.max_rejected}"
        )

    def _compare(self, step: int, loss: float) -> None:
        spike, window = self._config.spike_factor, self._losses.maxlen
        if spike is None:
            return
        median = statistics.median(self._losses) if len(self._losses) == window else math.inf
        if loss > spike * median:
            what = f"the loss is {loss:.4g} at step {step}, {loss / median:.3g} times the last {window} losses' median"
            if self._rewinds_left:
                raise Spike(what, step=step)
            if not self._within_spike:
                logger.info(f"{what}; guard.max_rewinds={self._config.max_rewinds} are used up, so training goes on")
            self._within_spike = True
        else:
            self._within_spike = False
        self._losses.append(loss)


def advise(optimizer: OptimizerConfig, *, precision: str, augmented: bool) -> str:
    """What a user could change about a run whose loss diverges."""
    full_precision = ", train in precision='float32'" if precision != "float32" else ""
    switch = ", or in this one with augmentations switched off or of less weight" if augmented else ""
    return (
        f"start again with a lower optimizer.learning_rate ({optimizer.learning_rate}), longer "
        f"optimizer.warmup_steps ({optimizer.warmup_steps}){full_precision} in another run folder{switch}"
    )


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
