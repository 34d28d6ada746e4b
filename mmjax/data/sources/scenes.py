"""Procedural scenes of flat objects with exact semantics: a data set without files, for tests and small experiments.

Every item is a pure function of (seed, split, index); splits are disjoint random streams.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np

from mmjax.core.config import Between, ConfigError, choose
from mmjax.data import source
from mmjax.data.scenes import edits, graph, language, negatives, render, shifts, signs, statements
from mmjax.data.scenes import questions as scene_questions
from mmjax.data.scenes import world as worlds
from mmjax.data.scenes.world import Scene
from mmjax.data.text import with_answer

SPLITS = ("train", "val", "test", "zeroshot", "winoground")
SHIFTED_SPLITS = tuple(f"{split}_{shift}" for shift, splits in shifts.SPLITS.items() for split in splits)
TRAIN_SIZE, EVAL_SIZE, SIZE_LIMIT = 8192, 1000, 32768
PER_CLASS = 8
WINOGROUND_PAIRS = 400
WINOGROUND_KINDS = ("swap_color", "swap_shape", "relation")
SINGLE_SHARE = 0.2  # of the training scenes: without them one-object images would be out of distribution
_FRAMES = "frames"
ELSEWHERE = 1 << 32  # from this index on scenes are no items: their captions serve as caption noise

# Parts of a scene's random stream: where its Philox counter starts. Each has room for both members of a pair.
_GRAPH, _TWIN, _CAPTIONS, _NEGATIVES, _PIXELS, _SHIFT, _QUESTIONS = 0, 2, 4, 6, 8, 14, 16
_RIGHT, _RIGHT_PIXELS, _STATEMENTS, _SIGNS = 18, 20, 22, 24

Task = Literal["captions", "questions", "entailment", "pairs", "expressions"]


class Source(source.Source):
    """Random access to one split; items have ``image`` (and ``depth``, ``thermal``), ``captions`` and ``id``.

    ``scene`` is what the picture shows, as plain values (``mmjax.data.scenes.graph``).

    ``train``: up to 32,768 scenes (8,192), a fifth of them of one object. ``val`` and ``test``: as many (1,000) of two
    objects, with ``negatives``: (kind, true caption, false caption). ``zeroshot``: one object, 8 for each color and
    shape, with ``label``. ``winoground``: items 2k and 2k+1 are a minimal pair of the ``kind`` that is named, in the
    same pixel noise, with one caption each in the same words. Held-out combinations of color and shape occur in
    ``test`` and ``zeroshot`` alone (there, ``held_out`` is bool for each class).

    ``val``, ``test`` and ``zeroshot`` exist in other styles: the items of ``test_hue`` are those of ``test`` with
    rotated hues, those of ``test_cast`` in light of another color, and the texts of ``test_words`` are put in phrases
    that training never has (``mmjax.data.scenes.shifts``). In ``val_flipped`` and ``test_flipped`` two objects have
    each other's color of those that ``tied`` gives them.

    Args:
      split: one of ``SPLITS`` or ``SHIFTED_SPLITS``.
      world: ``easy`` (4 shapes, 4 colors, 2 textures, 4 relations), ``standard`` (6, 6, 3, 6), ``full`` (8, 8, 3, 6).
      size: how many items of train, val or test; those of a smaller set are the first ones of a larger. The number in
        zeroshot and winoground is fixed, so that ``data.evaluation.size`` goes with all splits.
      image_size: height and width in pixels.
      modalities: any of ``image``, ``depth``, ``thermal``: pixel-aligned, each u8[image_size, image_size, 3]; or
        ``frames`` alone, a sequence of features f32[T, 16] that tells the scene, with its ``gloss``
        (``mmjax.data.scenes.signs``), for ``model.vision_cfg.stem="frames"``.
      seed: another seed is another data set.
      twins: train items 2k and 2k+1 are a scene and the same with places or colors exchanged (one object: with
        another color, shape or texture); ``group`` is then 2.
      caption_noise: probability that a caption of train is another scene's.
      terse: probability that a caption of train is two words, the color and shape of one object.
      tied: probability that the shapes of a scene of train have the one color that belongs to each; not so its twin.
      negatives: the kinds to supply (``mmjax.data.scenes.negatives.KINDS``); all in val and test, none elsewhere.
      hue: turns of the color wheel, there or back, in the splits ``…_hue``. Up to 1/36 each color of the palette stays
        nearest to its own name.
      cast: in the splits ``…_cast`` each channel is multiplied by ``e^u``, u uniform within plus and minus this.
      task: what texts are. Other tasks than ``captions`` have one text with an ``answer`` and its ``kind``, all
        answers as ``class_names``, and no splits ``zeroshot`` and ``winoground``:

        * ``questions`` about the scene (``mmjax.data.scenes.questions``);
        * ``entailment``: a statement that the picture makes true or false, or leaves open;
        * ``pairs``: a statement about two pictures, which two ``modalities`` such as ``left`` and ``right`` name
          (``mmjax.data.scenes.statements``);
        * ``expressions``: the name of one object, with its ``box`` in place of an answer; ``proposals`` are all boxes.
      answered: of questions, the caption is the question with its answer, for models that shall write both.
      hidden: of these, for controls: all pictures are gray, or all texts are the same.
      cache: keep each item once made, so that later epochs are look-ups; costs ``3 * image_size**2`` bytes an RGB
        image and a third of that for the other modalities.
    """

    def __init__(
        self,
        split: str,
        *,
        world: str = "standard",
        size: int | None = None,
        image_size: Annotated[int, Between(8, 4096, "32 shows every attribute")] = 32,
        modalities: tuple[str, ...] = ("image",),
        seed: Annotated[int, Between(0, (1 << 55) - 1)] = 0,
        twins: bool = False,
        caption_noise: Annotated[float, Between(0, 1)] = 0.0,
        terse: Annotated[float, Between(0, 1)] = 0.0,
        tied: Annotated[float, Between(0, 1)] = 0.0,
        negatives: tuple[str, ...] | None = None,
        hue: Annotated[float, Between(0, 0.5)] = 1 / 36,
        cast: Annotated[float, Between(0, 2)] = 0.4,
        task: Task = "captions",
        answered: bool = False,
        hidden: Literal["nothing", "image", "question"] = "nothing",
        cache: bool = True,
    ):
        split = choose("" if split is None else split, (*SPLITS, *SHIFTED_SPLITS), path="split")
        self._name = split
        self.split, _, self.shift = split.partition("_")
        split = self.split
        self.world = worlds.WORLDS[choose(world, worlds.WORLDS, path="world")]
        self.group = 2 if twins or split == "winoground" else 1
        self.image_size = image_size
        self.modalities = tuple(modalities)
        self.seed = seed
        self.twins = twins
        self.caption_noise = caption_noise
        self.terse, self.tied = terse, tied
        self.hue, self.cast = hue, cast
        self.negatives = _kinds(split, negatives)
        self.task, self.answered, self.hidden = task, answered, hidden
        self.aligned = task != "pairs"
        self._check()
        self._size = _size(split, size, world=self.world, group=self.group)
        self._cache: dict[int, dict[str, Any]] | None = {} if cache else None
        answers = {
            "questions": scene_questions.ANSWERS,
            "entailment": statements.ENTAILMENT_LABELS,
            "pairs": statements.PAIR_LABELS,
        }
        if task in answers:
            self.class_names = list(answers[task])
        if split == "zeroshot":
            classes = self.world.combinations("any")
            self.class_names = [f"{worlds.COLORS[c]} {worlds.SHAPES[s]}" for c, s in classes]
            self.templates = list(shifts.TEMPLATES if self.shift == "words" else language.TEMPLATES)
            self.held_out = np.array([self.world.held_out(c, s) for c, s in classes])

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self.check_index(index)
        item = None if self._cache is None else self._cache.get(index)
        if item is None:
            item = self._make(index)
            if self._cache is not None:
                self._cache[index] = item
        # The arrays are read-only; the lists are the caller's own.
        return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}

    def column(self, name: str) -> np.ndarray:
        """``id`` alone, by which tables name scenes; the rest is drawn when it is read."""
        return np.arange(len(self)) if name == "id" else super().column(name)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cache: a worker process renders for itself faster than it unpickles."""
        return {**self.__dict__, "_cache": None if self._cache is None else {}}

    def scene(self, index: int) -> Scene:
        """The scene graph that item ``index`` shows: the ground truth of its captions; of a pair, the left one."""
        index = self.check_index(index)
        if self.task in ("entailment", "pairs"):
            return self._statement(index).scene
        return self._own_scene(index)

    def right_scene(self, index: int) -> Scene:
        """The scene graph of the right picture of a pair."""
        base, member = divmod(self.check_index(index), self.group)
        return self._graph(base, _RIGHT + member)

    def _own_scene(self, index: int) -> Scene:
        base, member = divmod(index, self.group)
        first = self._graph(base)
        if member == 0:
            return first
        if self.twins:
            return edits.twin(self.world, first, self._stream(base, _TWIN).random(2).tolist())
        kind = self._kind(index)
        if kind == "relation":
            # Said from the other side, so that the two captions have the same words.
            a, b = edits.exchange_places(first).things
            return dataclasses.replace(first, things=(b, a))
        return edits.exchange(first, kind.removeprefix("swap_"))

    def _statement(self, index: int) -> statements.Statement:
        base, member = divmod(index, self.group)
        u = self._stream(base, _STATEMENTS + member).random(statements.UNIFORMS).tolist()
        own = self._own_scene(index)
        if self.task == "entailment":
            return statements.entailment(self.world, own, u)
        return statements.of_pair(own, self.right_scene(index), u)

    def _graph(self, base: int, part: int = _GRAPH) -> Scene:
        *u, single, tied = self._stream(base, part).random(worlds.UNIFORMS + 2).tolist()
        if self.split == "zeroshot":
            return worlds.draw_single(self.world, u, self.world.combinations("any")[base // PER_CLASS])
        train: Literal["tied", "seen"] = "tied" if tied < self.tied else "seen"
        if self.split == "train" and single < SINGLE_SHARE:
            return worlds.draw_single(self.world, u, worlds.pick(self.world.combinations(train), u[0]))
        allowed: dict[str, worlds.Combinations] = {"train": train, "test": "any", "winoground": "swappable"}
        return worlds.draw_pair(
            self.world, u, "flipped" if self.shift == "flipped" else allowed.get(self.split, "seen")
        )

    def _make(self, index: int) -> dict[str, Any]:
        base, member = divmod(index, self.group)
        scene = self.scene(index)
        # A Winoground pair shares its pixel noise, so that nothing but the meaning tells its images apart.
        grain = member if self.twins else 0
        if self.task == "pairs":
            return {"id": index} | self._pair(scene, index) | self._asked(scene, index)
        item: dict[str, Any] = {"id": index}
        if self.modalities == (_FRAMES,):
            sequence = signs.frames(scene, self._stream(base, _SIGNS + grain))
            item |= {_FRAMES: sequence, "gloss": " ".join(signs.glosses(scene))}
        else:
            noise = {m: self._stream(base, _PIXELS + 2 * render.MODALITIES.index(m) + grain) for m in self.modalities}
            item |= render.render(scene, image_size=self.image_size, noise=noise)
        item["scene"] = graph.to_json(scene, self.world)
        if "image" in item:
            item["image"] = self._shift(item["image"], self._stream(base, _SHIFT))
        if self.task == "expressions":
            return item | self._expression(scene, base, member)
        if self.task != "captions":
            return item | self._asked(scene, index)
        if self.split == "winoground":
            where = "light" if scene.light else "dark"
            item["captions"] = [f"{language.short_caption(scene)} on a {where} background"]
            item["kind"] = self._kind(index)
        else:
            item["captions"] = self._captions(scene, index)
        if self.split == "zeroshot":
            item["label"] = index // PER_CLASS
        if self.negatives:
            u = self._stream(base, _NEGATIVES + member).random(negatives.UNIFORMS).tolist()
            item["negatives"] = negatives.negatives(self.world, scene, u, self.negatives)
        return shifts.reword_item(item, self._stream(base, _SHIFT)) if self.shift == "words" else item

    def _pair(self, left: Scene, index: int) -> dict[str, Any]:
        """The pictures of two scenes, in color."""
        base, member = divmod(index, self.group)
        pictures = {}
        scenes = (left, _PIXELS), (self.right_scene(index), _RIGHT_PIXELS)
        for number, (modality, (scene, part)) in enumerate(zip(self.modalities, scenes, strict=True)):
            noise = {"image": self._stream(base, part + member)}
            picture = render.render(scene, image_size=self.image_size, noise=noise)["image"]
            pictures[modality] = self._shift(picture, self._stream(base, _SHIFT + number))
        return pictures

    def _expression(self, scene: Scene, base: int, member: int) -> dict[str, Any]:
        thing = worlds.pick(scene.things, float(self._stream(base, _QUESTIONS + member).random()))
        boxes = [graph.box(one) for one in scene.things]
        return {"captions": [f"a {language.name(thing)}"], "box": graph.box(thing), "proposals": boxes}

    def _asked(self, scene: Scene, index: int) -> dict[str, Any]:
        """The text of a task, and what is to be said of it."""
        asked: scene_questions.Question | statements.Statement
        if self.task == "questions":
            base, member = divmod(index, self.group)
            u = self._stream(base, _QUESTIONS + member).random(scene_questions.UNIFORMS).tolist()
            asked = scene_questions.question(self.world, scene, u)
        else:
            asked = self._statement(index)
        text = with_answer(asked.text, asked.answer) if self.answered else asked.text
        fields = {"captions": ["what" if self.hidden == "question" else text], "answer": asked.answer}
        gray = np.full((self.image_size, self.image_size, 3), 128, np.uint8)
        gray.flags.writeable = False
        pictures = dict.fromkeys(self.modalities, gray) if self.hidden == "image" else {}
        return fields | {"kind": asked.kind} | pictures

    def _shift(self, x: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return shifts.shift_picture(x, self.shift, random.random(3).tolist(), hue=self.hue, cast=self.cast)

    def _captions(self, scene: Scene, index: int) -> list[str]:
        captions = language.captions(scene)
        if self.caption_noise == 0 and self.terse == 0:
            return captions
        base, member = divmod(index, self.group)
        u = self._stream(base, _CAPTIONS + member).random((len(captions), 3)).tolist()
        stranger = self._graph(ELSEWHERE + index)
        strange = language.captions(stranger)
        for i, (noisy, short, choice) in enumerate(u):
            captioned_scene = stranger if noisy < self.caption_noise else scene
            if short < self.terse:
                captions[i] = language.name(captioned_scene.things[int(choice * len(captioned_scene.things))])
            elif captioned_scene is stranger:
                captions[i] = strange[i]
        return captions

    def _kind(self, index: int) -> str:
        return WINOGROUND_KINDS[index // 2 % len(WINOGROUND_KINDS)]

    def _stream(self, base: int, part: int) -> np.random.Generator:
        key = [self.seed << 8 | SPLITS.index(self.split), base]
        return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, part]))

    def _check(self) -> None:
        if self.task != "captions" and (self.split in ("zeroshot", "winoground") or self.shift == "words"):
            raise ConfigError(f"task={self.task!r}: not for split={self._name!r}; use train, val or test")
        if self.answered and (self.task != "questions" or self.hidden == "question"):
            raise ConfigError(
                "answered=True: is for questions alone; set task='questions' and not hidden, or leave it out"
            )
        if self.hidden != "nothing" and self.task in ("captions", "expressions"):
            raise ConfigError(f"hidden={self.hidden!r}: is for other tasks than captions; set task, or leave it out")
        if self.task == "pairs" and len(self.modalities) != 2:
            raise ConfigError(f"modalities={self.modalities}: task='pairs' has two pictures; use ('left', 'right')")
        for name in () if self.task == "pairs" else self.modalities:
            choose(name, (*render.MODALITIES, _FRAMES), path="modalities")
        drawn = self.hidden == "image" or self.shift in ("hue", "cast") or self.task == "expressions"
        if _FRAMES in self.modalities and (self.modalities != (_FRAMES,) or drawn):
            raise ConfigError(
                f"modalities={self.modalities}: {_FRAMES!r} is a modality alone and no picture; use pictures for this"
            )
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ConfigError(f"modalities={self.modalities}: name one or more of {render.MODALITIES}, each once")
        for name in ("twins", "caption_noise", "terse", "tied"):
            if getattr(self, name) and self.split != "train":
                raise ConfigError(
                    f"{name}={getattr(self, name)}: only for split='train', not {self.split!r}; leave it out here"
                )


def _kinds(split: str, kinds: tuple[str, ...] | None) -> tuple[str, ...]:
    if kinds is None:
        return negatives.KINDS if split in ("val", "test") else ()
    for kind in kinds:
        choose(kind, negatives.KINDS, path="negatives")
    if kinds and split in ("zeroshot", "winoground"):
        raise ConfigError(f"negatives={tuple(kinds)}: not for split={split!r}; leave it out or use val or test")
    return tuple(kinds)


def _size(split: str, size: int | None, *, world: worlds.World, group: int) -> int:
    fixed = {"zeroshot": PER_CLASS * world.colors * world.shapes, "winoground": 2 * WINOGROUND_PAIRS}
    if split in fixed:
        return fixed[split]
    if size is None:
        return TRAIN_SIZE if split == "train" else EVAL_SIZE
    if not 1 <= size <= SIZE_LIMIT:
        raise ConfigError(f"size={size}: split={split!r} has 1 to {SIZE_LIMIT} items; choose within that")
    if size % group:
        raise ConfigError(f"size={size}: twins come in pairs; use an even size such as {size - 1 or 2}")
    return size
