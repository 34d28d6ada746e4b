"""Decoding of texts in batches in which each row has random numbers of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Decoding
from mmjax.generate.torch_models.loading import draws, import_torch, import_transformers

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")


def rows_per_item(decoding: Decoding) -> int:
    """How often an item stands in a batch; a beam search finds its ``n`` texts in one row."""
    return decoding.beams if decoding.beams is not None else decoding.n


def repeats(decoding: Decoding) -> int:
    """How often an item's inputs are repeated for its ``n`` texts."""
    return 1 if decoding.beams is not None else decoding.n


def generation_options(network: Any, decoding: Decoding, seeds: Sequence[int], *, max_tokens: int) -> dict[str, Any]:
    """Keyword arguments of ``network.generate``.

    ``transformers`` samples with one random stream for a whole batch. Here the library decodes greedily, from logits
    that leave the one token which the row's own stream has drawn.

    Args:
      network: what generates.
      decoding: None leaves a setting to the model's generation config.
      seeds: one an item; its ``n`` rows follow each other.
      max_tokens: where neither ``decoding`` nor the model says so.
    """
    transformers = import_transformers()
    config = copy.deepcopy(network.generation_config)
    sampling = {name: getattr(config, name, None) for name in _SAMPLING} if config.do_sample else {}
    chosen = {"temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
    sampling |= {name: value for name, value in chosen.items() if value is not None}
    if decoding.n > 1 and decoding.beams is None and not sampling:
        sampling["temperature"] = 1.0  # or all n would be the same
    config.do_sample = False
    for name in _SAMPLING:
        if hasattr(config, name):
            setattr(config, name, None)
    config.max_new_tokens = decoding.max_tokens or config.max_new_tokens or max_tokens
    config.max_length = None
    config.min_length = None
    config.min_new_tokens = decoding.min_tokens or config.min_new_tokens
    config.num_beams, config.num_return_sequences = 1, 1
    processors = transformers.LogitsProcessorList()
    if decoding.beams is not None:
        if any(value is not None for value in chosen.values()):
            raise ConfigError(
                f"decoding.beams={decoding.beams}: a beam search does not sample; set beams or the others"
            )
        if decoding.n > decoding.beams:
            raise ConfigError(f"decoding.n={decoding.n}: a search with {decoding.beams} beams finds no more than those")
        config.num_beams, config.num_return_sequences = decoding.beams, decoding.n
    elif sampling and sampling.get("temperature") != 0:
        processors.append(_make_sampler(sampling, seeds, decoding.n))
    return {"generation_config": config, "logits_processor": processors}


def _make_sampler(sampling: dict[str, Any], seeds: Sequence[int], n: int) -> Any:
    torch, transformers = import_torch(), import_transformers()
    warpers = []
    if sampling.get("temperature") not in (None, 1.0):
        warpers.append(transformers.TemperatureLogitsWarper(float(sampling["temperature"])))
    if sampling.get("top_k"):
        warpers.append(transformers.TopKLogitsWarper(int(sampling["top_k"])))
    for name, warper in (
        ("top_p", "TopPLogitsWarper"),
        ("min_p", "MinPLogitsWarper"),
        ("typical_p", "TypicalLogitsWarper"),
        ("epsilon_cutoff", "EpsilonLogitsWarper"),
        ("eta_cutoff", "EtaLogitsWarper"),
    ):
        value = sampling.get(name)
        if value is not None and 0 < value < 1:
            warpers.append(getattr(transformers, warper)(float(value)))
    streams = [stream for seed in seeds for stream in draws(seed).spawn(n)]

    class Sampler:
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            scores = scores.float()
            for warper in warpers:
                scores = warper(input_ids, scores)
            probabilities = torch.softmax(scores, dim=-1)
            sums = probabilities.to("cpu" if scores.device.type == "mps" else scores.device, torch.float64).cumsum(-1)
            drawn = torch.tensor([stream.random() for stream in streams], dtype=torch.float64, device=sums.device)
            # The first token whose sum is larger has a probability above zero.
            tokens = torch.searchsorted(sums, drawn[:, None] * sums[:, -1:], right=True)
            tokens = tokens.clamp(max=scores.shape[-1] - 1).to(scores.device)
            return torch.full_like(scores, float("-inf")).scatter(-1, tokens, 0.0)

    return Sampler()
