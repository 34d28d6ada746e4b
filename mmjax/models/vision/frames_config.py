"""What a tower of sequences may be configured to, and the schema of its recognizer. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Any

from mmjax.core.files import read_names
from mmjax.models.block_config import Size, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecognizerConfig:
    """A head over a sequence's frames that names each frame's label, or none; ``recognizer.py`` says how.

    ``labels`` are the names, or a JSON file with a list of them. Label k is class k, and the last class is CTC's blank.
    """

    labels: tuple[str, ...] | str = ()
    max_labels: Size | None = None  # of a sequence; None: as many as frames

    def __post_init__(self) -> None:
        section = "model.recognizer"
        object.__setattr__(self, "labels", read_names(self.labels, key=f"{section}.labels"))
        require(len(self.labels) > 0, f"{section}.labels=(): name what is to be recognized, such as glosses")


def check_frames(vision: Any) -> None:
    """Raises ConfigError if a ``VisionConfig`` of sequences has what only pictures have, or the other way round."""
    section = "model.vision_cfg"
    if vision.stem != "frames":
        require(
            vision.max_frames == type(vision).max_frames,
            f"{section}.max_frames={vision.max_frames}: is for sequences, and {section}.stem={vision.stem!r} takes "
            "pictures; leave it out, or set stem='frames'",
        )
        return
    require(
        len(vision.modalities) == 1,
        f"{section}.modalities={vision.modalities}: a tower with {section}.stem='frames' takes one; leave one",
    )
    for name, value in (
        ("pool_type", "avg"),
        ("class_token", False),
        ("registers", 0),
        ("rope", "none"),
        ("attentional_pool", "none"),
        ("fusion", "views"),
        ("pos_embed_type", "learnable"),
    ):
        actual = getattr(vision, name)
        require(
            actual == value, f"{section}.{name}={actual!r}: must be {value!r} with {section}.stem='frames'; set it so"
        )
