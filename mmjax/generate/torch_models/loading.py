"""Loading what ``from_pretrained`` finds, and running it batch by batch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from mmjax.core.config import ConfigError, Ge, shorten
from mmjax.generate.backend import Failure

_log = logging.getLogger(__name__)
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")


@dataclasses.dataclass(kw_only=True)
class TorchModel:
    """A model of the Hugging Face hub or a folder that ``save_pretrained`` wrote.

    Args:
      model: the folder, or the name on the hub.
      revision: of the hub: a commit, branch or tag; a commit is the only one that stays the same.
      device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` takes an accelerator if there is one.
      dtype: of weights and activations.
      batch_size: items that go through the model at once.
    """

    model: str
    revision: str = "main"
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: Annotated[int, Ge(1)] = 8

    def read(self, loader: Any, **options: Any) -> Any:
        """``loader.from_pretrained``; errors become a ConfigError."""
        try:
            with _without_progress_bars():
                return loader.from_pretrained(self.model, revision=self.revision, trust_remote_code=False, **options)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
            reason = shorten(" ".join(str(error).split()), 240)
            raise ConfigError(
                f"model={self.model!r}: {loader.__name__} cannot load it ({reason}); "
                "name a folder or a model of the hub that has this kind of model"
            ) from error

    def load(self, loader: Any, **options: Any) -> Any:
        """A network, on its device and ready for inference."""
        torch = import_torch()
        network = self.read(loader, dtype=getattr(torch, self.dtype), **options)
        commit = getattr(getattr(network, "config", None), "_commit_hash", None)
        if commit and commit != self.revision:
            _log.info("%s: %r is commit %s now; revision=%s pins it", self.model, self.revision, commit, commit)
        return network.to(self.torch_device()).eval()

    def torch_device(self) -> Any:
        """The device that ``device`` means here."""
        torch = import_torch()
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = shorten(" ".join(str(error).split()), 120)
            raise ConfigError(f"device={self.device!r}: torch cannot use it ({reason}); use cpu or auto") from None
        return device

    def run(
        self,
        items: Sequence[I],
        seeds: Sequence[int],
        function: Callable[[list[I], list[int]], Sequence[R | Failure]],
        *,
        group: Callable[[I], Hashable] = lambda item: None,
        copies: int = 1,
    ) -> list[R | Failure]:
        """What a function makes of batches, in the items' order.

        Args:
          items: what to compute.
          seeds: one an item.
          function: from the items and seeds of a batch to a result each.
          group: items with different values are never in one batch.
          copies: how many rows of a batch an item takes.
        """
        if len(items) != len(seeds):
            raise ValueError(f"{len(items)} items, {len(seeds)} seeds")
        torch = import_torch()
        groups: dict[Hashable, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(group(item), []).append(place)
        size = max(1, self.batch_size // copies)
        results: dict[int, R | Failure] = {}
        with torch.inference_mode():
            for places in groups.values():
                for start in range(0, len(places), size):
                    batch = places[start : start + size]
                    made = _isolate(function, [items[place] for place in batch], [seeds[place] for place in batch])
                    results |= zip(batch, made, strict=True)
        return [results[place] for place in range(len(items))]


def import_torch() -> Any:
    """The library; raises ConfigError if it is not there."""
    return _import("torch")


def import_transformers() -> Any:
    """The library, if torch is there too."""
    _import("torch")
    return _import("transformers")


def import_diffusers() -> Any:
    """The library."""
    _import("torch")
    return _import("diffusers")


def to_device(inputs: Any, network: Any) -> dict[str, Any]:
    """Tensors on a network's device; those of floats in its type."""
    return {
        name: value.to(network.device, network.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
        if hasattr(value, "is_floating_point")
    }


def draws(seed: int) -> np.random.Generator:
    """The random stream of an item."""
    return np.random.default_rng(seed)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """The libraries' own bars stay out of ours."""
    logging_of = import_transformers().utils.logging
    shown = logging_of.is_progress_bar_enabled()
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging_of.enable_progress_bar()


def _isolate(
    function: Callable[[list[I], list[int]], Sequence[R | Failure]], items: list[I], seeds: list[int]
) -> Sequence[R | Failure]:
    """The batch's results; if it raises, each item by itself, and what raises then fails alone."""
    try:
        return function(items, seeds)
    except ConfigError:
        raise
    except Exception as error:
        if len(items) == 1:
            _log.debug("an item failed", exc_info=True)
            return [Failure(shorten(f"{type(error).__name__}: {' '.join(str(error).split())}", 200))]
    return [result for item, seed in zip(items, seeds, strict=True) for result in _isolate(function, [item], [seed])]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"name='hf': {name} cannot be imported ({shorten(str(error), 120)}); pip install 'mmjax[generate]'"
        ) from None
