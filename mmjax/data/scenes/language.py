"""True captions of a scene. Their grammar, which the tests check with an independent parser::

caption  = ["there is" ["only"]] thing [tail | link thing [place] [where]]
thing    = "a" [size] [texture] color shape [place]
link     = relation | "and"
place    = "in the" ("top" | "middle" | "bottom") ("left" | "centre" | "right")
where    = "on a" ("dark" | "light") "background"
tail     = ["alone"] [where]
"""

from __future__ import annotations

from mmjax.data.scenes.world import COLORS, FRAME, SHAPES, SIZES, TEXTURES, Scene, Thing

RELATION_PHRASES = ("to the left of", "to the right of", "above", "below", "in front of", "behind")
SYNONYMS = ("little", "big")  # of SIZES
CAPTIONS_PER_IMAGE = 5
TEMPLATES = (
    "a {}",
    "there is a {}",
    "there is only a {}",
    "a {} alone on a dark background",
    "a {} alone on a light background",
)


def captions(scene: Scene) -> list[str]:
    """Five true captions, from the full description to very short ones."""
    where = f"on a {'light' if scene.light else 'dark'} background"
    if len(scene.things) == 1:
        (a,) = scene.things
        return [
            f"{full_caption(scene)} {place(a)}",
            f"a {name(a)} alone {where}",
            f"a {describe(a, 'texture')} {where}",
            f"there is only a {describe(a, 'synonym')}",
            f"a {describe(a, 'texture')} {place(a)}",
        ]
    a, b = scene.things
    assert scene.relation is not None
    inverse = Scene((b, a), scene.relation ^ 1, scene.light, scene.tint)
    return [
        full_caption(scene),
        full_caption(inverse),
        f"{short_caption(scene)} {where}",
        f"there is a {describe(a, 'synonym')} and a {describe(b, 'texture')}",
        f"a {describe(a, 'texture')} {place(a)} and a {describe(b, 'size')} {place(b)}",
    ]


def full_caption(scene: Scene) -> str:
    """All attributes of all things, and their relation."""
    return _related(scene, [f"a {describe(t, 'size', 'texture')}" for t in scene.things])


def short_caption(scene: Scene) -> str:
    """Colors, shapes and the relation."""
    return _related(scene, [f"a {name(t)}" for t in scene.things])


def name(thing: Thing) -> str:
    """The color and the shape, as two words."""
    return f"{COLORS[thing.color]} {SHAPES[thing.shape]}"


def describe(thing: Thing, *attributes: str) -> str:
    """The name, preceded by those of ``size`` (or its ``synonym``) and ``texture`` that are asked for."""
    terms = []
    if "size" in attributes:
        terms.append(SIZES[thing.size])
    if "synonym" in attributes:
        terms.append(SYNONYMS[thing.size])
    if "texture" in attributes:
        terms.append(TEXTURES[thing.texture])
    return " ".join([*terms, name(thing)])


def place(thing: Thing) -> str:
    """The ninth of the frame that the thing's center is in."""
    row = ("top", "middle", "bottom")[int(thing.y * 3 / FRAME)]
    column = ("left", "centre", "right")[int(thing.x * 3 / FRAME)]
    return f"in the {row} {column}"


def _related(scene: Scene, phrases: list[str]) -> str:
    return phrases[0] if scene.relation is None else f" {RELATION_PHRASES[scene.relation]} ".join(phrases)
