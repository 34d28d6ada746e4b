"""Statements about scenes that are true or not, balanced so that the words alone say nothing about that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mmjax.data.scenes.edits import change, others
from mmjax.data.scenes.language import name
from mmjax.data.scenes.world import COLORS, SHAPES, SIZES, TEXTURES, Scene, World, pick

PAIR_LABELS = ("False", "True")
ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
UNIFORMS = 6  # numbers for one statement


class Statement(NamedTuple):
    """What is said, whether it holds, the kind of statement, and the scene that is shown (of a pair, the left one)."""

    text: str
    answer: str
    kind: str
    scene: Scene


def of_pair(left: Scene, right: Scene, u: Sequence[float]) -> Statement:
    """A statement about two scenes that were drawn alike, from ``UNIFORMS`` numbers in [0, 1).

    ``side``        which of the two shows an object that one of them alone has
    ``background``  whether both backgrounds are the same
    ``size``        whether an object of the one is as large as an object of the other

    In each a coin decides which of two opposite statements is made, and both are true equally often whatever else they
    say: sides because the scenes are exchangeable, the others because there are two of each. ``background`` and
    ``size`` say nothing about one of the pictures alone either.
    """
    kind = pick(("side", "background", "size"), u[0])
    first = u[1] < 0.5
    mine, theirs = ({name(t) for t in scene.things} for scene in (left, right))
    alone = sorted(mine ^ theirs)
    if kind == "side" and alone:
        shown = pick(alone, u[2])
        return _true_if(first == (shown in mine), f"the {'left' if first else 'right'} image has a {shown}", kind, left)
    if kind == "size":
        a, b = pick(left.things, u[2]), pick(right.things, u[3])
        comparison = "as large as" if first else "not as large as"
        text = f"the {name(a)} in the left image is {comparison} the {name(b)} in the right image"
        return _true_if(first == (a.size == b.size), text, kind, left)
    text = f"the images have {'the same background' if first else 'different backgrounds'}"
    return _true_if(first == (left.light == right.light), text, "background", left)


def _true_if(holds: bool, text: str, kind: str, scene: Scene) -> Statement:
    return Statement(text, PAIR_LABELS[holds], kind, scene)


def entailment(world: World, scene: Scene, u: Sequence[float]) -> Statement:
    """A statement about a color, a texture or a size, from ``UNIFORMS`` numbers in [0, 1).

    It is made about an object of ``scene`` before a label is drawn, so that words and label are independent; then the
    scene is changed. It shows the object (``entailment``), the object with another value of the attribute
    (``contradiction``), or no object of that shape: whether there is one elsewhere nobody knows (``neutral``).
    """
    kind, label = pick(("color", "texture", "size"), u[0]), pick(ENTAILMENT_LABELS, u[1])
    index = int(u[2] * len(scene.things))
    thing = scene.things[index]
    value = {"color": COLORS, "texture": TEXTURES, "size": SIZES}[kind][getattr(thing, kind)]
    text = f"the {SHAPES[thing.shape]} is {value}"
    if label != "entailment":
        attribute = kind if label == "contradiction" else "shape"
        scene = change(scene, index, attribute, pick(others(world, scene, index, attribute), u[3]))
    return Statement(text, label, kind, scene)
