"""CFT-CLIP: images choose among captions and counterfactual captions, at a fixed temperature."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax

from mmjax.core.config import Gt
from mmjax.core.types import Metrics, Provenance
from mmjax.objectives.common.base import Base
from mmjax.objectives.common.row_softmax import row_softmax
from mmjax.objectives.common.targets import make_targets
from mmjax.objectives.common.tiles import num_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(Base):
    """Cross-entropy from image to text over all captions and all counterfactuals (Yoon et al. 2024, arXiv:2402.11159).

    With cosines ``c``, targets ``S`` and the counterfactuals ``H``, which are text rows of zero weight::

        loss = mean_i [log Σ_(j ∈ captions ∪ H) e^(c_ij/τ) - Σ_j S_ij c_ij / (τ Σ_j S_ij)]

    There is no loss from text to image. τ is fixed, so that the model's own scale is not trained. Without
    counterfactuals it is CLIP's loss from image to text. The released code sums exponentials without subtracting the
    largest one, which a smaller τ would overflow; here the sum is stable. It takes exactly one counterfactual for each
    caption; here there may be any number.

    For the other options see ``Base``.

    Args:
        temperature: τ.
    """

    needs_negatives: ClassVar[bool] = True

    temperature: Annotated[float, Gt(0)] = 0.05

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        *,
        image_source: Provenance,
        text_source: Provenance,
        scale: jax.Array,
        bias: jax.Array | None = None,
    ) -> tuple[jax.Array, Metrics]:
        """The loss f32[] and the in-batch accuracy; for the arguments see ``Base``. ``scale`` is not used."""
        rows = row_softmax(
            self.make_sweep(num_rows(image), num_rows(text)),
            make_targets,
            (image / self.temperature, self.make_labels(image_source)),
            (text, self.make_labels(text_source)),
        )
        return rows.loss, {"image_to_text_accuracy": rows.accuracy}
