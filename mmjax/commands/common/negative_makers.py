"""What makes the negatives of ``mmjax data negatives``, from its flags: rules of this package, or other models."""

from __future__ import annotations

import argparse
import collections
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.commands.common import options
from mmjax.core.config import Between, ConfigError, Ge, choose, literal

METHODS = ("rules", "swap", "units", "triples", "mlm", "entity", "llm")
ROLES = {"filler": "MaskFiller", "tagger": "EntityTagger", "scorer": "Scorer", "writer": "Writer"}
"""The flags that name models, and what these can do."""

_USED = {"mlm": ("filler",), "entity": ("tagger", "filler", "scorer"), "llm": ("writer",)}
_OPTIONAL = ("scorer",)
_LIMITS = {
    "mlm": ("temperature", "tries"),
    "entity": ("temperature", "tries", "budget"),
    "llm": ("temperature", "prompt"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of methods, and of the models that they ask."""
    parser.add_argument("--method", required=True, choices=METHODS, help="how captions are changed")
    parser.add_argument("--kinds", metavar="A,B", help="kinds of changes (default: all of the method)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choices (default: 0)")
    for role, text in (
        ("filler", "the model that fills masks (mlm, entity), as hf:FOLDER"),
        ("tagger", "the model that finds names (entity), as hf:FOLDER"),
        ("scorer", "the model that judges captions by their picture (entity), as clip:runs/first; default: none"),
        ("writer", "the model that writes (llm), as openai:NAME with --url"),
    ):
        parser.add_argument(f"--{role}", metavar="BACKEND:MODEL", help=text)
    parser.add_argument("--url", metavar="URL", help="of the writer's service, as http://localhost:8000/v1")
    parser.add_argument(
        "--model-option", action="append", default=[], metavar="ROLE.KEY=VALUE",
        help="a further option of a model, as writer.concurrency=16; repeatable",
    )  # fmt: skip
    parser.add_argument("--temperature", type=float, metavar="T", help="of the model's draws (mlm 1, entity 2)")
    parser.add_argument("--tries", type=int, metavar="N", help="until a result is accepted (mlm 5, entity 10)")
    parser.add_argument("--budget", type=float, metavar="FRACTION", help="of a caption that names may be (entity 0.3)")
    parser.add_argument(
        "--triples", metavar="A,B",
        help="tables of head, relation and tail, VisualSem's tuples.v2.json or ConceptNet's assertions (triples)",
    )  # fmt: skip
    parser.add_argument("--wordnet", metavar="DIR", help="and WordNet's folder dict (triples)")
    parser.add_argument("--prompt", metavar="FILE", help="what the writer is asked, with $caption and $kinds (llm)")


class RuleMaker:
    """Changes captions by rules, one example after the other."""

    def __init__(self, method: Any, kinds: Sequence[str], *, seed: int):
        from mmjax.data.negatives.generate import Generator

        self._generator = Generator(method, kinds, seed=seed)
        self.failures: collections.Counter[str] = collections.Counter()

    def rows(self, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """The negatives of all examples."""
        return [row for example in examples for row in self._generator.rows(example.key, example.captions)]


def make_maker(args: argparse.Namespace, source: Any) -> tuple[Any, dict[str, Any]]:
    """What makes the negatives of ``source``, and what decides its results."""
    options.check_ranges(args, tries=Ge(1), budget=Between(0, 1), temperature=Ge(0))
    for name in ROLES:
        used = name in _USED.get(args.method, ())
        if getattr(args, name) is not None and not used:
            raise ConfigError(
                f"--{name}={getattr(args, name)}: --method={args.method} asks no such model; leave it out"
            )
        if used and name not in _OPTIONAL and getattr(args, name) is None:
            raise ConfigError(f"--{name} is missing: --method={args.method} asks a model; name it as BACKEND:MODEL")
    limits = {name: getattr(args, name) for name in ("temperature", "tries", "budget", "prompt")}
    limits = {name: value for name, value in limits.items() if value is not None}
    for name, value in limits.items():
        if name not in _LIMITS.get(args.method, ()):
            raise ConfigError(f"--{name}={value}: --method={args.method} does not use it; leave it out")
    for name in ("triples", "wordnet"):
        if getattr(args, name) is not None and args.method != "triples":
            raise ConfigError(f"--{name}={getattr(args, name)}: --method={args.method} reads none; leave it out")
    if args.method == "triples":
        return _make_fact_maker(args)
    if args.method not in _USED:
        from mmjax.data.negatives import generate

        kinds = _kinds(args, generate.KINDS[args.method])
        maker: Any = RuleMaker(args.method, kinds, seed=args.seed)
        return maker, {"kinds": kinds, "revision": generate.revision(args.method)}
    sections = {name: section for name in _USED[args.method] if (section := _section(args, name))}
    models = {name: _load(name, section) for name, section in sections.items()}
    if args.method == "mlm":
        from mmjax.data.negatives import swaps
        from mmjax.generate.negatives import fills

        kinds = _kinds(args, fills.KINDS)
        maker = fills.FillMaker(models["filler"], swaps.tagger("--method=mlm"), kinds, seed=args.seed, **limits)
    elif args.method == "entity":
        from mmjax.generate.negatives import entities

        kinds = list(options.split_csv(args.kinds) or entities.KINDS)  # the tagger knows which there are
        maker = entities.EntityMaker(
            models["tagger"], models["filler"], kinds, scorer=models.get("scorer"), picture=_Pictures(source),
            seed=args.seed, **limits,
        )  # fmt: skip
    else:
        from mmjax.generate.negatives import edits

        kinds = list(options.split_csv(args.kinds) or edits.KINDS)  # the prompt names them, whatever they are
        maker = edits.EditMaker(models["writer"], kinds, seed=args.seed, **limits)
    from mmjax.generate.recipe import results_of

    known = {name: results_of(section) for name, section in sections.items()}
    return maker, {"kinds": kinds, "models": known, **limits}


def _make_fact_maker(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    from mmjax.data.concepts import fact_rows, triples
    from mmjax.data.concepts.wordnet import WordNet

    paths = options.split_csv(args.triples)
    if not paths and args.wordnet is None:
        raise ConfigError("--triples is missing: --method=triples needs facts; name tables, or WordNet by --wordnet")
    known = [triple for path in paths for triple in triples.read_triples(path, option="--triples")]
    if args.wordnet is not None:
        wordnet = WordNet(args.wordnet)
        known += triples.wordnet_triples(wordnet, wordnet.nouns)
    if not known:
        raise ConfigError(f"--triples={args.triples}: holds no facts; check the files")
    digest = hashlib.blake2b(repr(known).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
    kinds = _kinds(args, triples.KINDS)
    return fact_rows.FactMaker(triples.Graph(known), kinds, seed=args.seed), {"kinds": kinds, "facts": digest}


class _Pictures:
    """The pictures of a source by place."""

    def __init__(self, source: Any):
        self._source = source

    def __call__(self, place: int) -> Any:
        from mmjax.data import pictures
        from mmjax.generate.backend import Picture

        example = self._source.read(place)
        key = str(example.get("key", example["id"]))
        return Picture(pictures.decode(example[self._source.modalities[0]], key=key), example.get("scene"))


def _kinds(args: argparse.Namespace, known: Sequence[str]) -> list[str]:
    return [choose(kind, known, path="--kinds") for kind in options.split_csv(args.kinds) or known]


def _section(args: argparse.Namespace, role: str) -> dict[str, Any] | None:
    """The model of that role as a section of a recipe."""
    value = getattr(args, role)
    if value is None:
        return None
    backend, colon, model = value.partition(":")
    if not colon or not model:
        raise ConfigError(f"--{role}={value}: expected BACKEND:MODEL, as hf:FOLDER or openai:NAME")
    section = {"name": backend, "model": model}
    if role == "writer" and args.url is not None:
        section["url"] = args.url
    for text in args.model_option:
        name, equals, setting = text.partition("=")
        of_role, dot, key = name.partition(".")
        if not equals or not dot or of_role not in ROLES:
            raise ConfigError(f"--model-option={text}: expected ROLE.KEY=VALUE with a role of {', '.join(ROLES)}")
        if of_role == role:
            section[key] = literal(setting)
    return section


def _load(role: str, section: Mapping[str, Any]) -> Any:
    from mmjax.core import plugins
    from mmjax.generate.recipe import BACKENDS

    return plugins.make(BACKENDS, ROLES[role], section, path=f"--{role}")
