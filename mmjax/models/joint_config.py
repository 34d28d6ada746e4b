"""The schema of the modules that join the two towers' tokens. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from mmjax.core.config import Between
from mmjax.models.block_config import BlockConfig, Layers, Size, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusionConfig(BlockConfig):
    """The fusion encoder over both towers' tokens; ``fusion.py`` says what its kinds compute.

    It is as wide as the text tower. ALBEF and TCL have ``block_norm="post"``, ViLT ``kind="joint"`` with ``pool_tanh``
    and ``word_head="own"``.
    """

    kind: Literal["cross", "joint"] = "cross"  # text attends to the image, or both are one sequence
    layers: Layers = 6
    heads: Size | None = None  # None: those of the text tower
    pool_tanh: bool = False  # BERT's pooler before the matching head
    word_head: Literal["tied", "own", "none"] = (
        "tied"  # vectors that predict words: the text tower's, others, or no head
    )

    answers: Annotated[int, Between(0, 2**20)] = 0  # classes of a head that answers questions; 0: there is none
    images: Annotated[int, Between(1, 2)] = 1  # pictures that the head sees with one text

    def __post_init__(self) -> None:
        require(
            self.attention in (None, "xla"),
            f"model.fusion.attention={self.attention!r}: its masks need the compiler's products; leave it out",
        )
        require(
            self.images == 1 or self.answers > 0,
            f"model.fusion.images={self.images}: is for the head of answers; set model.fusion.answers, such as 2",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(BlockConfig):
    """The text decoder over image tokens; ``decoder.py`` says what its variants compute.

    CoCa's has ``inputs="tower"``, CapPa's ``inputs="ids"``, ``cross_mlp=False`` and a ``mask_token``, and a prefix
    language model ``attend="prefix"`` and ``inputs="ids"``.
    """

    width: Size = 512
    heads: Size = 8
    layers: Layers = 12
    attend: Literal["cross", "prefix"] = "cross"  # how text sees the image
    inputs: Literal["tower", "ids"] = "tower"  # the text tower's tokens, or embeddings of its own
    cross_mlp: bool = True  # an MLP after either attention, as in open_clip; False: one after both
    mask_token: bool = False  # there is a token for words that are predicted in parallel

    def __post_init__(self) -> None:
        section = "model.decoder"
        require(self.width % self.heads == 0, f"{section}.heads={self.heads}: must divide {section}.width={self.width}")
        require(
            self.block_norm == "pre",
            f"{section}.block_norm={self.block_norm!r}: decoders have norms first; use 'pre'",
        )
        require(
            self.inputs == "ids" or (self.attend == "cross" and not self.mask_token),
            f"{section}.inputs='tower': the text tower's tokens go with attend='cross' and without a mask_token; set "
            "inputs='ids'",
        )
        require(
            self.attend == "cross" or not self.mask_token,
            f"{section}.mask_token=True: words are predicted in parallel with attend='cross' alone; set one of the two",
        )
        require(
            self.attention in (None, "xla"),
            f"{section}.attention={self.attention!r}: the decoder has masks, which fused kernels do not; leave it out",
        )


def check_joint(model: Any) -> None:
    """Raises ConfigError if the modules of a ``ClipConfig`` do not go with its towers."""
    vision, text, fusion, decoder = model.vision_cfg, model.text_cfg, model.fusion, model.decoder
    heads = vision.attn_pooler_heads
    require(
        vision.attentional_pool == "none" or model.embed_dim % heads == 0,
        f"model.vision_cfg.attn_pooler_heads={heads}: must divide model.embed_dim={model.embed_dim}",
    )
    require(
        vision.stem != "frames" or (fusion is None and decoder is None),
        "model.vision_cfg.stem='frames': a decoder or a fusion encoder would read the padding of sequences; leave out "
        "model.fusion and model.decoder",
    )
    require(
        vision.fusion != "gated" or (fusion is None and decoder is None),
        "model.vision_cfg.fusion='gated': joins modalities behind pooling, and a decoder or a fusion encoder reads "
        "tokens; leave out model.fusion and model.decoder, or use model.vision_cfg.fusion='tokens'",
    )
    require(
        model.recognizer is None or vision.stem == "frames",
        f"model.recognizer: reads sequences, and model.vision_cfg.stem={vision.stem!r} takes pictures; leave it "
        "out, or set stem='frames'",
    )
    causal = not (text.no_causal_mask or text.positions_from_pad) and text.layers > 0
    require(
        decoder is None or decoder.inputs == "ids" or causal,
        "model.decoder.inputs='tower': needs a causal text tower (no_causal_mask=False, positions_from_pad=False); set "
        "inputs='ids'",
    )
    for section, layers in (("vision_cfg", vision.layers), ("text_cfg", text.layers)):
        require(
            layers > 0 or (section == "vision_cfg" and vision.stem == "resnet") or fusion is not None,
            f"model.{section}.layers=0: a tower without blocks is for model.fusion, which has them; use at least 1",
        )
    if fusion is not None:
        heads = fusion.heads or text.heads
        require(
            text.width % heads == 0,
            f"model.fusion.heads={heads}: must divide the width of the text tower, model.text_cfg.width={text.width}",
        )
