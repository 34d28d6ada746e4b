"""What several configuration files share: their arguments and the sections that are made of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.config_file import parse_arguments as parse_arguments


def plugin_entries(names: str, **options: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """``lemda+m2mix`` as entries of ``augment`` or ``data.transforms``; ``none`` is no entry.

    Args:
        names: Names of plug-ins.
        options: The options of those that shall not have their defaults, by name.
    """
    return () if names == "none" else tuple((name, dict(options.get(name, {}))) for name in names.split("+"))


def paired_data(train: str, val: str, *, tokenizer: str, transforms: Sequence[Any] = ()) -> dict[str, Any]:
    """The data section of a run on pictures with captions, in any format.

    Args:
        train: Path of the training data; like ``val`` it may hold ``{split}``.
        val: Path of all other splits; if empty, they are looked for at ``train``.
        tokenizer: Name of the tokenizer.
        transforms: Entries of ``data.transforms``.
    """
    return {
        "source": {"name": "auto", "path": train},
        "evaluation": {"path": val} if val else {},
        "transforms": tuple(transforms),
        "tokenizer": {"name": tokenizer},
    }


def evaluation(
    tasks: str, *, batch_size: int, every_steps: int, final_splits: Sequence[str] = ("val",)
) -> dict[str, Any]:
    """The eval section of a run that is evaluated by ``tasks``, during training and after it.

    Args:
        tasks: Names of evaluators, as ``retrieval+zeroshot``, or ``none``.
        batch_size: That of training is right: devices that can split the one can split the other.
        every_steps: Steps between evaluations.
        final_splits: The splits of the last evaluation.
    """
    names = () if tasks == "none" else tuple(tasks.split("+"))
    return {
        "every_steps": every_steps,
        "batch_size": batch_size,
        "tasks": names,
        "final_splits": tuple(final_splits),
        "final_tasks": names,
    }


def small_optimizer(*, learning_rate: float = 2e-3, warmup_steps: int = 40) -> dict[str, Any]:
    """The optimizer section of small models that train for minutes."""
    return {
        "learning_rate": learning_rate,
        "b2": 0.98,
        "weight_decay": 0.05,
        "warmup_steps": warmup_steps,
        "final_fraction": 0.02,
    }
