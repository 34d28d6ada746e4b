"""The facts of VisualSem, a knowledge graph of 90,000 visual entities (Alberts et al. 2021, arXiv:2008.09150).

Its ``tuples.v2.json`` has for each entity the relations that lead to it, ``{"bn:00015267n": [{"s": "bn:00021498n", "r":
"is-a", "r_id": 7}]}``: s is the head. ``nodes.v2.json`` beside it names the entities: the main sense ``ms`` and all
senses ``se``. ``gloss_files/nodes.glosses.json`` has their descriptions by language: a list whose further entries are
``{"bn:00015267n": {"en": ["A member of the genus Canis."]}}``.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.storage import filesystem

_RELATIONS = {
    "is-a": "IsA", "has-part": "HasA", "used-for": "UsedFor", "receives-action": "ReceivesAction", "made-of": "MadeOf",
    "has-property": "HasProperty", "part-of": "PartOf", "located-at": "AtLocation", "used-by": "UsedBy",
    "subject-of": "SubjectOf", "related-to": "RelatedTo", "gloss-related": "GlossRelated", "synonym": "Synonym",
}  # fmt: skip
_SOURCE = re.compile(r"^[A-Za-z]+:[A-Z]{2}:")  # of a sense: WN:EN:dog
_NUMBER = re.compile(r"#[a-z]?(?:#?\d+)?$")  # of a sense: dog#n#1
_DISAMBIGUATION = re.compile(r"[ _]*\([^()]*\)$")  # of an article: Jaguar_(car)


def is_visualsem(path: str) -> bool:
    """Whether a path is named as VisualSem's facts are: ``tuples.json``, ``tuples.v2.json``."""
    return re.fullmatch(r"tuples(\.\w+)?\.json", posixpath.basename(path)) is not None


def read_facts(path: str, *, option: str, language: str) -> Iterator[tuple[str, str, str]]:
    """Head, relation and tail of each fact, relations by ConceptNet's names, entities by their main senses.

    Where the folder has descriptions, (entity, DefinedAs, description) follow, of each the first one in ``language``.
    The released graph files has-kind, as has-part, under HasA.

    Args:
      path: of the tuples; the nodes lie beside.
      option: that names the path, for errors.
      language: of the descriptions.
    """
    folder, name = posixpath.split(filesystem.local_path(path))
    nodes_path = posixpath.join(folder, name.replace("tuples", "nodes"))
    tuples, nodes = (_read(file, dict, option=option) for file in (path, nodes_path))
    names = {id: _name(node, where=f"{option}={nodes_path!r}: {id!r}") for id, node in nodes.items()}
    for tail, entries in tuples.items():
        where = f"{option}={path!r}: {tail!r}"
        for entry in _checked(entries, list, where=where):
            entry = _checked(entry, dict, where=where)
            head, relation = str(entry.get("s")), entry.get("r")
            if not isinstance(relation, str):
                raise ConfigError(f"{where}: has no relation r; fetch it again")
            if unknown := [id for id in (head, tail) if id not in names]:
                raise ConfigError(f"{where}: {unknown[0]!r} is not in {nodes_path!r}; use files of one version")
            if names[head] and names[tail]:
                yield names[head], _RELATIONS.get(relation.replace("_", "-"), relation), names[tail]
    glosses_path = posixpath.join(folder, "gloss_files", "nodes.glosses.json")
    if filesystem.exists(glosses_path):
        for entry in _read(glosses_path, list, option=option):
            for id, glosses in _checked(entry, dict, where=f"{option}={glosses_path!r}").items():
                if id in names and names[id] and isinstance(glosses, Mapping) and (own := glosses.get(language)):
                    yield names[id], "DefinedAs", str(own[0]).strip().rstrip(".")


def _name(node: Any, *, where: str) -> str:
    """What people call an entity; empty if it has no senses."""
    node = _checked(node, dict, where=where)
    senses = [node.get("ms"), *(node.get("se") or [])]
    sense = next((sense for sense in senses if isinstance(sense, str) and sense), "")
    plain = _NUMBER.sub("", _SOURCE.sub("", sense))
    return " ".join((_DISAMBIGUATION.sub("", plain) or plain).replace("_", " ").split())


def _read(path: str, kind: type, *, option: str) -> Any:
    try:
        with filesystem.open_file(path) as file:
            value = json.load(file)
    except OSError as error:
        raise ConfigError(
            f"{option}={path!r}: cannot be read ({error.strerror or error}); nodes and tuples lie in one folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option}={path!r}: is no JSON ({error}); fetch it again") from None
    return _checked(value, kind, where=f"{option}={path!r}")


def _checked(value: Any, kind: type, *, where: str) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(
            f"{where}: is no {'object' if kind is dict else 'list'}, as in VisualSem's files; fetch it again"
        )
    return value
