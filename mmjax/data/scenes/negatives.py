"""Hard negative captions: true and false sentences that differ in one thing.

The false one is said of a minimally changed scene, with the words of the true one. Sentences of the swap and replace
kinds are equally long, but for ``in front of`` and ``behind``; those of the add kinds are longer, so a scorer that
never sees the image can win there: read these columns beside a text-only control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from mmjax.data.scenes.edits import change, exchange, others
from mmjax.data.scenes.language import describe, full_caption, name, short_caption
from mmjax.data.scenes.world import Scene, World

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
    """(kind, true caption, false caption) for each of ``kinds`` that the scene admits.

    One thing cannot be swapped or related; two that are equally large, or have one texture, cannot swap that.
    ``u`` are ``UNIFORMS`` numbers in [0, 1), of which each kind has its own: leaving one out changes no other.
    """
    found = []
    for kind in kinds:
        at = 3 * KINDS.index(kind)
        pair = _pair(world, scene, kind, u[at : at + 3])
        if pair is not None:
            found.append((kind, *pair))
    return found


def _pair(world: World, scene: Scene, kind: str, u: Sequence[float]) -> tuple[str, str] | None:
    action, attribute = kind.split("_")
    true, which = full_caption(scene), int(u[0] * len(scene.things))
    if action == "add":
        return short_caption(scene), _added(world, scene, attribute, which, u)
    if action == "replace" and attribute in ATTRIBUTES:
        return true, full_caption(change(scene, which, attribute, _pick(others(world, scene, which, attribute), u[1])))
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


def _added(world: World, scene: Scene, what: str, which: int, u: Sequence[float]) -> str:
    """The short caption with a wrong texture or size put in, or with a thing that is not there put after it."""
    short = short_caption(scene)
    if what == "attribute":
        attribute = "texture" if u[2] < 0.5 else "size"
        wrong = change(scene, which, attribute, _pick(others(world, scene, which, attribute), u[1])).things[which]
        return short.replace(f"a {name(wrong)}", f"a {describe(wrong, attribute)}")
    absent = set(range(world.shapes)) - {t.shape for t in scene.things}
    color, shape = _pick([cs for cs in world.combinations("seen") if cs[1] in absent], u[1])
    extra = dataclasses.replace(scene.things[0], color=color, shape=shape)
    return f"{short} and a {name(extra)}"


def _pick(options, u: float):
    return options[int(u * len(options))]
