"""Small recipes over the procedural world, run in this process."""

import contextlib

from hypothesis import strategies as st

from mmjax.data.formats.generated_records import Record
from mmjax.generate.engines import local
from mmjax.generate.inputs import Inputs
from mmjax.generate.job import Job
from mmjax.generate.recipe import make_recipe
from mmjax.generate.stages import StageRunner

PIECES = [
    *('{"', '":', "[", "]", "{", "}", "```json", "```", "=>", "-", "1.", '"a"', "0.5", "\\", "\n", "\ud800", "null"),
    *("Question:", "Answer:", "?", "yes", "no", "attributes", "objects"),
]
REPLIES = st.text(max_size=60) | st.lists(
    st.sampled_from(PIECES), max_size=14,
).map("".join)  # fmt: skip
"""Texts in which pieces of what models reply stand in any order."""

SCENES = {"name": "scenes", "world": "easy", "size": 24}


@contextlib.contextmanager
def uncounted(text, total, already):
    yield lambda done: None


def make_job(output, stages, models=None, *, source=None, splits=("train",), limit=None, bare=False, **keys):
    recipe = make_recipe({"stages": stages, "models": models or {}, "shard": 8, "batch_size": 3, **keys})
    section = source if bare else SCENES | (source or {})
    return Job(recipe, Inputs(section, splits=splits, limit=limit), output, {"source": section})


def run(job, engine=local.run):
    job.run(engine, count=uncounted)
    return list(job.records())


def make_records(stages, models=None, *, source=None, splits=("train",), **keys):
    """What the stages before any global block make of the scenes, without a folder."""
    recipe = make_recipe({"stages": stages, "models": models or {}, **keys})
    inputs = Inputs(SCENES | (source or {}), splits=splits)
    runner = StageRunner(recipe, inputs)
    return runner.run(map(inputs.record, range(len(inputs))), [(n, None) for n in range(len(stages))])


def content(folder):
    """Bytes of all files that an output consists of."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}


def record(**fields):
    return Record(**{"id": "1", "captions": [{"text": "a cat", "source": "raw", "weight": 1.0}], **fields})
