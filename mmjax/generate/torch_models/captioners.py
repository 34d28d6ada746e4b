"""Captioners: BLIP, BLIP-2, InstructBLIP, and chat models that see, such as Qwen2-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.generate.backend import Decoding, Failure, Picture
from mmjax.generate.pixels import to_pillow
from mmjax.generate.torch_models.loading import TorchModel, import_transformers, to_device
from mmjax.generate.torch_models.sampling import generation_options, repeats, rows_per_item

_MAX_TOKENS = 50
_FIXED_INPUT = {"blip", "blip-2", "instructblip"}  # their processors take pictures and texts side by side


class PictureReader:
    """A model that goes on from a picture and a text."""

    def __init__(self, options: TorchModel):
        transformers = import_transformers()
        self._options = options
        config = options.read(transformers.AutoConfig)
        self._processor = options.read(transformers.AutoProcessor)
        if "BlipForQuestionAnswering" in (config.architectures or ()):
            loader = transformers.BlipForQuestionAnswering
        else:
            loader = transformers.AutoModelForImageTextToText
        self._network = options.load(loader)
        self.chats = config.model_type not in _FIXED_INPUT
        if self.chats:
            self._processor.tokenizer.padding_side = "left"

    def caption(
        self, pictures: Sequence[Picture], prompts: Sequence[str | None], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str] | Failure]:
        """``decoding.n`` texts a picture; those of BLIP begin with their prompt."""
        return self._options.run(
            list(zip(pictures, prompts, strict=True)),
            seeds,
            lambda items, own_seeds: self._generate(items, decoding, own_seeds),
            group=lambda item: item[1],  # of one length
            copies=rows_per_item(decoding),
        )

    def _generate(
        self, items: Sequence[tuple[Picture, str | None]], decoding: Decoding, seeds: Sequence[int]
    ) -> list[list[str]]:
        items = [item for item in items for _ in range(repeats(decoding))]
        inputs = to_device(self._chat_inputs(items) if self.chats else self._inputs(items), self._network)
        made = self._network.generate(
            **{name: value.clone() for name, value in inputs.items()},  # BLIP writes into its inputs
            **generation_options(self._network, decoding, seeds, max_tokens=_MAX_TOKENS),
        )
        if "input_ids" in inputs and not _is_encoder_decoder(self._network):
            asked = inputs["input_ids"]
            length = asked.shape[1]
            if (
                made.shape[1] >= length
                and (made[:: decoding.n, :length][: len(asked)] == asked[:: repeats(decoding)]).all()
            ):
                made = made[:, length:]
        texts = [text.strip() for text in self._processor.batch_decode(made, skip_special_tokens=True)]
        return [texts[start : start + decoding.n] for start in range(0, len(texts), decoding.n)]

    def _inputs(self, items: Sequence[tuple[Picture, str | None]]) -> Any:
        pictures = [to_pillow(picture) for picture, _ in items]
        prompt = items[0][1]
        if prompt is None and self._network.config.model_type == "instructblip":
            prompt = ""
        text = {} if prompt is None else {"text": [prompt] * len(items)}
        return self._processor(images=pictures, return_tensors="pt", **text)

    def _chat_inputs(self, items: Sequence[tuple[Picture, str | None]]) -> Any:
        conversations = []
        for picture, prompt in items:
            content: list[dict[str, Any]] = [{"type": "image", "image": to_pillow(picture)}]
            content.append(
                {"type": "text", "text": "Describe this picture in one sentence." if prompt is None else prompt}
            )
            conversations.append([{"role": "user", "content": content}])
        return self._processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )


def _is_encoder_decoder(network: Any) -> bool:
    return bool(
        network.config.is_encoder_decoder or getattr(network.config.get_text_config(), "is_encoder_decoder", False)
    )
