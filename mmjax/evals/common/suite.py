"""One model on many data sets: what is missing is skipped, and one that fails costs no other its turn."""

from __future__ import annotations

import collections
import logging
import time
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core import plugins
from mmjax.core.config import ConfigError, bind, call, choose
from mmjax.evals.common.base import Base, OpenSource
from mmjax.evals.common.embedder import BoundEmbedder
from mmjax.evals.common.metric_names import FOLDER, load_evaluator
from mmjax.parallel import collectives

logger = logging.getLogger(__name__)

_KEYS_OF_HEADS = {
    "match": "model.fusion with images=1",
    "answer": "model.fusion.answers with images=1",
    "answer_pair": "model.fusion.answers with images=2",
    "grad_cam": "model.fusion with kind='cross' and images=1",
    "caption": "model.decoder",
    "some_modalities": "model.vision_cfg.fusion='gated' or 'tokens'",
    "labels": "model.recognizer",
}

Options = Mapping[str, Mapping[str, Any]]
"""Options of evaluators by their names."""


class DataSet(NamedTuple):
    """A data set, the evaluator that measures it, and the evaluator's options."""

    name: str
    task: str
    options: Mapping[str, Any]
    split: str | None = None  # of the experiment's own data; None: the options name the data


class Outcome(NamedTuple):
    """What measuring one data set gave: metrics, or the error."""

    data_set: DataSet
    metrics: dict[str, float]
    error: Exception | None
    seconds: float


def find_data_sets(
    tasks: Sequence[str], root: Path, options: Options, *, defaults: Options = types.MappingProxyType({})
) -> list[DataSet]:
    """The data sets of ``tasks`` below ``root``; those of which nothing is there are logged and left out.

    Those with the same pictures stand together, so that they share their embeddings.

    Args:
        tasks: Evaluators.
        root: The folder of benchmarks.
        options: Replace those with which a data set was found.
        defaults: Are replaced by these.
    """
    data_sets = []
    for task in tasks:
        evaluator = load_evaluator(task)
        there = evaluator.find(root)
        if not there and evaluator.has_published():
            logger.info("%s: skipped, because none of its data sets lies below %s", task, root)
        elif not there:
            logger.info("%s: skipped, because it knows no published data", task)
        first, last = defaults.get(task, {}), options.get(task, {})
        data_sets += [DataSet(name, task, {**first, **own, **last}) for name, own in there.items()]
    order: dict[str, int] = {}
    return sorted(data_sets, key=lambda data_set: order.setdefault(_data_of(data_set), len(order)))


def find_suite(
    suite: Sequence[str],
    root: str | None,
    options: Options,
    *,
    defaults: Options = types.MappingProxyType({}),
    keys: tuple[str, str] = ("--suite", "--root"),
    heads: Collection[str] | None = None,
    answers: Collection[str] = (),
) -> list[DataSet]:
    """The data sets of a suite that are there, one at least; raises ConfigError for names and folders that are none.

    Args:
        suite: Evaluators, or ``all`` that the model can run. ``NAME:DATA_SET`` is one data set of an evaluator.
        root: The folder of benchmarks.
        options: As in ``find_data_sets``.
        defaults: As in ``find_data_sets``.
        keys: What names the suite and the folder, for errors.
        heads: What the model can do (``Embedder.heads``); None: that is not known.
        answers: What the model's head chooses from; empty: that is not known.
    """
    known, (suite_key, root_key) = plugins.names(FOLDER), keys
    if tuple(suite) == ("all",):
        tasks = [task for task in known if heads is None or find_missing_key(task, heads) is None]
        own = {task: {**defaults.get(task, {}), **options.get(task, {})} for task in tasks}
        tasks = [task for task in tasks if _has_answers(task, answers, own[task])]
    else:
        tasks = list(
            dict.fromkeys(choose(task, known, path=suite_key) for task in (entry.partition(":")[0] for entry in suite))
        )
        if heads is not None:
            for task in tasks:
                check_head(task, heads, path=suite_key)
    if root is None or not Path(root).is_dir():
        raise ConfigError(f"{root_key}={root}: no such folder; name the one in which the benchmarks lie")
    data_sets = find_data_sets(tasks, Path(root).absolute(), options, defaults=defaults)
    if not data_sets:
        if not any(load_evaluator(task).has_published() for task in tasks):
            names = ",".join(tasks)
            raise ConfigError(
                f"{suite_key}={names}: knows no published data; measure your own by --path and --tasks={names}, or "
                "that of a run by eval.final_tasks"
            )
        above = Path(root).absolute().parent  # of somebody who named the folder of one data set
        there = sorted({name for task in tasks for name in load_evaluator(task).find(above)}) if above.is_dir() else []
        way_out = f"{above} has {', '.join(there)}; name that" if there else "docs/benchmarks.md has their layouts"
        raise ConfigError(f"{root_key}={root}: has none of the data sets of {suite_key}={','.join(suite)}; {way_out}")
    return data_sets if tuple(suite) == ("all",) else _select(data_sets, suite, path=suite_key)


def _has_answers(task: str, answers: Collection[str], options: Mapping[str, Any]) -> bool:
    """Whether a model with these answers has those of an evaluator; if not, a line is logged."""
    needed = set(load_evaluator(task).needs_answers)
    if not answers or "answers" in options or needed <= set(answers):
        return True
    logger.info("%s: skipped, because the model's answers lack %s", task, ", ".join(sorted(needed - set(answers))))
    return False


def _select(data_sets: Sequence[DataSet], suite: Iterable[str], *, path: str) -> list[DataSet]:
    """The data sets of whole evaluators and those that are named; ConfigError for one that is not there."""
    meant: set[tuple[str, str]] = set()
    for entry in suite:
        task, named, name = entry.partition(":")
        names = [data_set.name for data_set in data_sets if data_set.task == task]
        meant.update((task, each) for each in ([choose(name, names, path=f"{path}: {task}")] if named else names))
    return [data_set for data_set in data_sets if (data_set.task, data_set.name) in meant]


def check_same_everywhere(data_sets: Sequence[DataSet], *, path: str) -> None:
    """Raises ConfigError if processes have found different data sets; all of them must call this.

    Args:
        data_sets: What this process has found.
        path: The key or flag of the folder, which an error names.
    """
    first, *others = collectives.all_gather([data_set.name for data_set in data_sets])
    for number, names in enumerate(others, 1):
        if names != first:
            raise ConfigError(
                f"{path}: process 0 finds {', '.join(first)} there and process {number} {', '.join(names)}; all "
                "machines need the same benchmarks"
            )


def find_missing_key(task: str, heads: Collection[str]) -> str | None:
    """The key of a model that an evaluator needs, if the model lacks it."""
    needed = load_evaluator(task).needs_head
    return None if needed is None or needed in heads else _KEYS_OF_HEADS[needed]


def check_head(task: str, heads: Collection[str], *, path: str) -> None:
    """Raises ConfigError if an evaluator needs what the model lacks; ``path`` is the key or flag that names it."""
    if (key := find_missing_key(task, heads)) is not None:
        raise ConfigError(f"{path}: {task!r} needs {key}, which the model lacks; leave it out, or set {key}")


def prefixes(data_sets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What stands before metrics of (data set, evaluator): the data set, and the evaluator if it has several."""
    pairs = list(dict.fromkeys(data_sets))
    evaluators = collections.Counter(name for name, _ in pairs)
    return {(name, task): name if evaluators[name] == 1 else f"{name}/{task}" for name, task in pairs}


def make_evaluator(data_set: DataSet, open_source: OpenSource) -> Base:
    """The evaluator of one data set; errors name its options after the data set."""
    cls = load_evaluator(data_set.task)
    bound = bind(cls, data_set.options, path=data_set.name, injected={"open_source": open_source})
    return call(cls, bound, path=data_set.name)


def measure(
    data_sets: Iterable[DataSet], *, make: Callable[[DataSet], Base], embedder: Callable[[], BoundEmbedder]
) -> Iterator[Outcome]:
    """Measures each data set, in order.

    Args:
        data_sets: Those with the same split and source one after another share their embeddings.
        make: Opens an evaluator.
        embedder: Makes one without any embeddings, of the model that is measured.
    """
    bound, shared = None, None
    for data_set in data_sets:
        begin = time.monotonic()
        key = _data_of(data_set)
        if bound is None or key != shared:  # the embeddings of data sets that are done would fill the memory
            bound, shared = embedder(), key
        try:
            outcome = Outcome(data_set, _open(make, data_set)(bound), None, time.monotonic() - begin)
        except Exception as error:  # of files, formats and plug-ins: there is no list of them
            outcome = Outcome(data_set, {}, error, time.monotonic() - begin)
        yield outcome


def _open(make: Callable[[DataSet], Base], data_set: DataSet) -> Base:
    """The evaluator of a data set; what one process cannot open is an error of all, which would wait for its rows."""
    own: Exception | None = None
    try:
        evaluator = make(data_set)
    except Exception as error:
        own = error
    errors = collectives.all_gather(None if own is None else one_line(own))
    if own is not None:
        raise own
    if (number := next((n for n, error in enumerate(errors) if error is not None), None)) is not None:
        raise ConfigError(f"process {number}: {errors[number]}")
    return evaluator


def _data_of(data_set: DataSet) -> str:
    """Equal for data sets of the same pictures."""
    own = data_set.split is not None
    return "" if own else repr([data_set.options.get(name) for name in ("split", "source")])


def check_options(options: Options, *, path: str) -> None:
    """Raises ConfigError unless each evaluator has options of these names and types.

    Args:
        options: Of evaluators that exist.
        path: The key or flag that an error names.
    """
    for task, own in options.items():
        bind(load_evaluator(task), own, path=f"{path}.{task}", injected={"open_source": None})


def one_line(error: Exception) -> str:
    """An error on one line, with its type if it is none of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
