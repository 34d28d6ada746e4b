"""Hard negative captions: true and false sentences that differ in one detail.

The false caption describes a minimally changed scene, in the words of the true one. Captions of the swap and replace
kinds have the same length, except for ``in front of`` and ``behind``. Those of the add kinds are longer, so a scorer
that never sees the image can win there: compare these metrics with a text-only control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from mmjax.data.scenes.edits import change, exchange, others
from mmjax.data.scenes.language import describe, full_caption, name, short_caption
from mmjax.data.scenes.world import Scene, World, pick

ATTRIBUTES = ("shape", "color", "size", "texture")
KINDS = (
    *("swap_object", "swap_color", "swap_size", "swap_texture"),
    *("replace_shape", "replace_color", "replace_size", "replace_texture", "replace_relation"),
    *("add_attribute", "add_object"),
)
UNIFORMS = 3 * len(KINDS)


def negatives(
    world: World, scene: Scene, u: Sequence[float], kinds: Iterable[str] = KINDS
) -> list[tuple[str, str, str]]:
    """Makes (kind, true caption, false caption) for each of ``kinds`` that is possible for the scene.

    A single thing cannot be swapped or related; two things of the same size or texture cannot swap that.

    Args:
      world: the vocabularies in use.
      scene: what the captions describe.
      u: ``UNIFORMS`` numbers in [0, 1); each kind uses its own, so that leaving one out changes no other.
      kinds: which to make.
    """
    captions = []
    for kind in kinds:
        first = 3 * KINDS.index(kind)
        pair = _pair(world, scene, kind, u[first : first + 3])
        if pair is not None:
            captions.append((kind, *pair))
    return captions


def _pair(world: World, scene: Scene, kind: str, u: Sequence[float]) -> tuple[str, str] | None:
    action, attribute = kind.split("_")
    true, index = full_caption(scene), int(u[0] * len(scene.things))
    if action == "add":
        return short_caption(scene), _added(world, scene, attribute, index, u)
    if action == "replace" and attribute in ATTRIBUTES:
        return true, full_caption(change(scene, index, attribute, pick(others(world, scene, index, attribute), u[1])))
    if scene.relation is None:
        return None
    if attribute == "relation":
        return true, full_caption(dataclasses.replace(scene, relation=scene.relation ^ 1))
    if attribute == "object":
        return true, full_caption(exchange(scene, *ATTRIBUTES))
    a, b = scene.things
    if getattr(a, attribute) == getattr(b, attribute):
        return None
    return true, full_caption(exchange(scene, attribute))


def _added(world: World, scene: Scene, addition: str, index: int, u: Sequence[float]) -> str:
    """The short caption with a wrong texture or size inserted, or with an absent thing appended."""
    short = short_caption(scene)
    if addition == "attribute":
        attribute = "texture" if u[2] < 0.5 else "size"
        wrong = change(scene, index, attribute, pick(others(world, scene, index, attribute), u[1])).things[index]
        return short.replace(f"a {name(wrong)}", f"a {describe(wrong, attribute)}")
    absent = set(range(world.shapes)) - {t.shape for t in scene.things}
    color, shape = pick([cs for cs in world.combinations("seen") if cs[1] in absent], u[1])
    absent_thing = dataclasses.replace(scene.things[0], color=color, shape=shape)
    return f"{short} and a {name(absent_thing)}"
