"""What sentences about scenes mean, written apart from the generator: own word lists, own parser, own geometry.

``Judge(scenes)(sentence)`` says for each scene whether the sentence is true of it. Raises ValueError on anything that
the grammar does not cover, so an ambiguous or malformed caption cannot pass.
"""

import itertools
import math
import re

import numpy as np

COLOR = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"]
SHAPE = ["circle", "square", "triangle", "cross", "star", "ring", "diamond", "hexagon"]
TEXTURE = ["plain", "striped", "dotted"]
SIZE = {"small": "small", "little": "small", "large": "large", "big": "large"}
ROW, COLUMN = ["top", "middle", "bottom"], ["left", "centre", "right"]
LINKS = {
    "to the left of": "left",
    "to the right of": "right",
    "above": "above",
    "below": "below",
    "in front of": "front",
    "behind": "behind",
    "and": "and",
}


def _any(words):
    return "|".join(words)


_THING = re.compile(
    rf"a (?:(?P<size>{_any(SIZE)}) )?(?:(?P<texture>{_any(TEXTURE)}) )?"
    rf"(?P<color>{_any(COLOR)}) (?P<shape>{_any(SHAPE)})"
    rf"(?: in the (?P<row>{_any(ROW)}) (?P<column>{_any(COLUMN)}))?(?P<alone> alone)?"
)
_LINK = re.compile(rf" (?P<link>{_any(LINKS)}) ")
_WHERE = re.compile(r" on a (?P<where>dark|light) background$")


def parse(sentence):
    """-> (things: list of dicts, links between neighbours, only: bool, where: str | None)."""
    rest, only = sentence, False
    where = _WHERE.search(rest)
    if where:
        rest = rest[: where.start()]
    if rest.startswith("there is "):
        rest = rest.removeprefix("there is ")
        if rest.startswith("only "):
            rest, only = rest.removeprefix("only "), True
    things, links = [], []
    while True:
        match = _THING.match(rest)
        if not match:
            raise ValueError(f"cannot parse {sentence!r} from {rest!r}")
        thing = {k: v for k, v in match.groupdict().items() if v}
        only |= bool(thing.pop("alone", None))
        things.append(thing)
        rest = rest[match.end() :]
        if not rest:
            break
        match = _LINK.match(rest)
        if not match:
            raise ValueError(f"cannot parse {sentence!r} from {rest!r}")
        links.append(LINKS[match["link"]])
        rest = rest[match.end() :]
    if only and len(things) > 1:
        raise ValueError(f"{sentence!r} says both 'only' and another thing")
    return things, links, only, where["where"] if where else None


class Judge:
    def __init__(self, scenes):
        self.count = len(scenes)
        slots = 2
        self.present = np.array([[k < len(s.things) for k in range(slots)] for s in scenes])

        def column(get):
            return np.array([[get(s.things[min(k, len(s.things) - 1)]) for k in range(slots)] for s in scenes])

        x, y, r, z = (column(lambda t, a=a: getattr(t, a)) for a in ("x", "y", "radius", "z"))
        attributes = {
            "color": column(lambda t: COLOR[t.color]),
            "shape": column(lambda t: SHAPE[t.shape]),
            "texture": column(lambda t: TEXTURE[t.texture]),
            "size": np.where(r < 13, "small", "large"),
            "row": np.array(ROW)[np.clip(y // (64 / 3), 0, 2).astype(int)],
            "column": np.array(COLUMN)[np.clip(x // (64 / 3), 0, 2).astype(int)],
        }
        self.masks = {(a, word): values == word for a, values in attributes.items() for word in np.unique(values)}
        self.nowhere = np.zeros_like(self.present)
        self.light = np.array([s.light for s in scenes])
        dx, dy = x[:, None, :] - x[:, :, None], y[:, None, :] - y[:, :, None]  # [scene, from, to]
        distance, reach = np.hypot(dx, dy), r[:, :, None] + r[:, None, :]
        apart, slack = distance > reach - 1e-6, 1e-6
        nearer = z[:, None, :] - z[:, :, None] > 0.2
        self.relations = {
            "left": apart & (dx > 1.5 * abs(dy) - slack),
            "right": apart & (-dx > 1.5 * abs(dy) - slack),
            "above": apart & (dy > 1.5 * abs(dx) - slack),
            "below": apart & (-dy > 1.5 * abs(dx) - slack),
            "front": (distance < 0.9 * reach) & nearer,
            "behind": (distance < 0.9 * reach) & nearer.transpose(0, 2, 1),
            "and": np.ones_like(apart),
        }

    def __call__(self, sentence):
        """bool[count]: true where the things can be assigned to distinct objects so that all that is said holds."""
        things, links, only, where = parse(sentence)
        true = np.zeros(self.count, bool)
        fits = [self._fits(t) for t in things]
        for chosen in itertools.permutations(range(2), len(things)):
            holds = np.logical_and.reduce([fits[i][:, slot] for i, slot in enumerate(chosen)])
            for link, a, b in zip(links, chosen, chosen[1:], strict=False):
                holds = holds & self.relations[link][:, a, b]
            true |= holds
        if only:
            true &= self.present.sum(1) == 1
        if where:
            true &= self.light == (where == "light")
        return true

    def _fits(self, thing):
        fits = self.present
        for attribute, word in thing.items():
            word = SIZE[word] if attribute == "size" else word
            fits = fits & self.masks.get((attribute, word), self.nowhere)
        return fits


def retrieval_ceiling(truth, own):
    """Expected R@1/5/10, text to image and image to text, of a scorer that knows exactly what is true and no more.

    ``truth`` bool[captions, images], ``own`` [captions]. Text to image: ties at random among the images of which the
    caption is true. Image to text: true captions first, those that are true of fewer images before others (the
    likelier own ones), ties at random.
    """
    matches = truth.sum(1)
    t2i = [100 * np.minimum(1, k / matches).mean() for k in (1, 5, 10)]
    hits = np.zeros((3, truth.shape[1]))
    for image in range(truth.shape[1]):
        mine, score = own == image, np.where(truth[:, image], 1 / matches, 0)
        best = score[mine].max()
        above = int((score[~mine] > best).sum())
        rivals, winners = int((score[~mine] == best).sum()), int((score[mine] == best).sum())
        for i, k in enumerate((1, 5, 10)):
            draws = min(max(0, k - above), rivals + winners)
            hits[i, image] = 1 - math.comb(rivals, draws) / math.comb(rivals + winners, draws)
    return t2i, list(100 * hits.mean(1))


class Silence:
    """A random generator of no noise, for rendering a scene as it is."""

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)
