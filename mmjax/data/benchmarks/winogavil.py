"""WinoGAViL: a cue and several pictures, some of which it was given for."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.data.benchmarks.common import base
from mmjax.data.storage import filesystem

_COLUMNS = {"cue", "candidates", "associations"}


class Source(base.BenchmarkSource):
    """``winogavil_dataset.csv`` (Bitton et al. 2022, arXiv:2207.12576): ``cue``, and JSON lists of names of pictures.

    Each picture is one example, ``NAME.jpg``. Its ``cues`` are (number of the row, cue, whether the picture is one of
    ``associations``, how many ``candidates`` the row has).

    Args:
      split: the benchmark has one, whatever its name.
      path: the table.
      image_root: the folder of the pictures.
      modalities: one name, for the pictures.
    """

    def __init__(self, split: str, *, path: str, image_root: str, modalities: tuple[str, ...] = ("image",)):
        root = filesystem.local_path(image_root)

        def make(number: Any, entry: Any) -> list[base.Row]:
            candidates, associations = (json.loads(entry[name]) for name in ("candidates", "associations"))
            unknown = set(associations) - set(candidates)
            if not associations or unknown or len(set(candidates)) != len(candidates):
                raise ValueError(f"associations={associations!r} must be some of the candidates, which differ")
            cue = base.text_of(entry, "cue")
            return [
                base.Row(
                    filesystem.join(root, f"{name}.jpg"),
                    (base.text_of(candidates, i),),
                    {"cues": (number, cue, name in associations, len(candidates))},
                )
                for i, name in enumerate(candidates)
            ]

        file = filesystem.local_path(path)
        super().__init__(base.rows_of(file, enumerate(_table(file)), make), path=path, modalities=modalities)


def _table(path: str) -> list[dict[str, str]]:
    try:
        table = csv.DictReader(io.StringIO(filesystem.read(path).decode("utf-8-sig"), newline=""))
        rows, names = list(table), table.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"path={path!r}: cannot be read ({error}); check the path") from None
    if missing := sorted(_COLUMNS - set(names)):
        raise ConfigError(f"path={path!r}: has no column {missing[0]!r}; name WinoGAViL's table")
    return rows
