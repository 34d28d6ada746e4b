"""NegCLIP: CLIP's objective with hard negative captions, and hard images as further pairs of the batch."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from mmjax.objectives import contrastive


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(contrastive.Objective):
    """CLIP's loss with false captions as further columns (Yuksekgonul et al. 2023, arXiv:2210.01936).

    With logits ``L``, targets ``S`` and the hard negatives ``H``, which are text rows of zero weight::

        loss = ½ mean_i [log Σ_(j ∈ captions ∪ H) e^L_ij - Σ_j S_ij L_ij / Σ_j S_ij]
             + ½ mean_(j ∈ captions) [lse_i L_ij - Σ_i S_ij L_ij / Σ_i S_ij]

    Each image is compared with the negatives of all images, and no negative has a row of its own. That is what
    ``contrastive`` does with rows of zero weight, so this is the same function under the method's name; without
    ``data.negatives_per_image`` it is CLIP's loss. Hard images are examples of the batch like others, with a caption
    and a negative of their own.

    The released code fails on a caption without negatives; here its row is padding. It does not notice that a hard
    image is already in the batch, and so makes it a negative of its own caption; here rows of one id are positives.
    It does not run on several devices.

    For the options see ``Base``.
    """

    needs_negatives: ClassVar[bool] = True
