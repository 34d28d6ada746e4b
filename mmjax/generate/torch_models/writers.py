"""Writers: causal language models, by their chat template if they have one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Decoding, Failure, Message
from mmjax.generate.json_schema import read_reply
from mmjax.generate.parsers import without_thoughts
from mmjax.generate.torch_models.loading import TorchModel, import_transformers, to_device
from mmjax.generate.torch_models.sampling import generation_options, repeats, rows_per_item

_MAX_TOKENS = 512


class LanguageModel:
    """A causal language model and its tokenizer."""

    def __init__(self, options: TorchModel):
        transformers = import_transformers()
        self._options = options
        self._tokenizer = options.read(transformers.AutoTokenizer, padding_side="left")
        self._network = options.load(transformers.AutoModelForCausalLM)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def write(
        self,
        conversations: Sequence[Sequence[Message]],
        decoding: Decoding,
        seeds: Sequence[int],
        schema: Mapping[str, Any] | None,
    ) -> list[list[str] | Failure]:
        """``decoding.n`` replies each; those that do not follow the schema fail their conversation."""
        return self._options.run(
            [self._text(messages) for messages in conversations],
            seeds,
            lambda texts, own_seeds: self._generate(texts, decoding, own_seeds, schema),
            copies=rows_per_item(decoding),
        )

    def _text(self, messages: Sequence[Message]) -> str:
        if any(message.picture is not None for message in messages):
            raise ConfigError(f"model={self._options.model!r}: a language model sees no pictures; use a captioner")
        if self._tokenizer.chat_template is None:
            return "\n\n".join(message.text for message in messages)
        turns = [{"role": message.role, "content": message.text} for message in messages]
        return self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _generate(
        self, texts: Sequence[str], decoding: Decoding, seeds: Sequence[int], schema: Mapping[str, Any] | None
    ) -> list[list[str] | Failure]:
        # A chat template has written the special tokens already.
        special = self._tokenizer.chat_template is None
        repeated = [text for text in texts for _ in range(repeats(decoding))]
        inputs = to_device(
            self._tokenizer(
                repeated, padding=True, add_special_tokens=special, return_token_type_ids=False, return_tensors="pt"
            ),
            self._network,
        )
        limit = getattr(self._network.config, "max_position_embeddings", None)
        most = _MAX_TOKENS if limit is None else min(_MAX_TOKENS, limit // 2)
        options = generation_options(self._network, decoding, seeds, max_tokens=most)
        config = options["generation_config"]
        config.pad_token_id = self._tokenizer.pad_token_id
        length = inputs["input_ids"].shape[1]
        if limit is not None and length + config.max_new_tokens > limit:
            raise ValueError(f"{length} tokens and {config.max_new_tokens} new ones are more than the model's {limit}")
        made = self._network.generate(**inputs, **options)[:, length:]
        replies = [without_thoughts(text) for text in self._tokenizer.batch_decode(made, skip_special_tokens=True)]
        grouped = [replies[start : start + decoding.n] for start in range(0, len(replies), decoding.n)]
        return [_check(own, schema) for own in grouped]


def _check(replies: list[str], schema: Mapping[str, Any] | None) -> list[str] | Failure:
    if schema is None:
        return replies if all(replies) else Failure("the reply is empty")
    try:
        return [read_reply(reply, schema) for reply in replies]
    except ValueError as error:
        return Failure(str(error))
