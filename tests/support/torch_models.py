"""Tiny random models of transformers and diffusers, written by ``save_pretrained`` as the published ones are."""

from __future__ import annotations

import string

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

_TEXT = (
    "a red blue green circle square cat dog anna bob paris visits paints in and question answer what is it picture user"
)
WORDS = _TEXT.split(" ")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]"]
TOWER = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
VISION = TOWER | {"image_size": 32, "patch_size": 8}
CLIP_TEXT = {"vocab_size": 400, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZE = {"height": 32, "width": 32}


def word_pieces(**options):
    """BERT's tokenizer with 400 tokens."""
    pieces = [f"##{c}" for c in string.ascii_lowercase + string.digits] + list(string.ascii_lowercase + string.digits)
    vocabulary = [*SPECIAL, *WORDS, *pieces, *"?.,:;!-'\"{}[]()"]
    vocabulary += [
        f"word{'abcdefghij'[i // 10 % 10]}{'abcdefghij'[i % 10]}{i // 100}" for i in range(400 - len(vocabulary))
    ]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.BertTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[BOS]", **options,
    )  # fmt: skip


def byte_pairs(*, prefix=(), **options):
    """A byte-level BPE with 400 tokens; ``prefix`` are special tokens after <pad>, <s> and </s>."""
    special = ["<pad>", "<s>", "</s>", *prefix]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", **options
    )


def save(folder, network, *others):
    """Writes a network with random weights, large enough to be of different minds about different inputs."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for name, p in network.named_parameters():
            if p.dim() > 1:
                p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if "embed" in name else 0.2))
    network.save_pretrained(folder)
    for other in others:
        other.save_pretrained(folder)
    return folder


def blip(folder, *, answers_questions=False):
    t = transformers
    text = TOWER | {"vocab_size": 400, "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    config = t.BlipConfig(
        vision_config=VISION, text_config=text | {"projection_dim": 32, "encoder_hidden_size": 32}, projection_dim=32
    )
    kind = t.BlipForQuestionAnswering if answers_questions else t.BlipForConditionalGeneration
    return save(folder, kind(config), t.BlipProcessor(t.BlipImageProcessor(size=SIZE), word_pieces()))


def blip2(folder):
    t = transformers
    tokenizer = byte_pairs(prefix=("<image>",), additional_special_tokens=["<image>"])
    config = t.Blip2Config(
        vision_config=VISION,
        qformer_config=TOWER | {"cross_attention_frequency": 1, "encoder_hidden_size": 32, "vocab_size": 400},
        text_config={"model_type": "opt", "vocab_size": 400, "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "word_embed_proj_dim": 32, "max_position_embeddings": 64,
                     "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    processor = t.Blip2Processor(t.BlipImageProcessor(size=SIZE), tokenizer, num_query_tokens=4)
    return save(folder, t.Blip2ForConditionalGeneration(config), processor)


def instruct_blip(folder):
    t = transformers
    tokenizer = byte_pairs(prefix=("<image>",), additional_special_tokens=["<image>"])
    config = t.InstructBlipConfig(
        vision_config=VISION,
        qformer_config=TOWER | {"cross_attention_frequency": 1, "encoder_hidden_size": 32, "vocab_size": 400},
        text_config={"model_type": "t5", "vocab_size": 400, "d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 2,
                     "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2},
        num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    processor = t.InstructBlipProcessor(t.BlipImageProcessor(size=SIZE), tokenizer, word_pieces(), num_query_tokens=4)
    return save(folder, t.InstructBlipForConditionalGeneration(config), processor)


def llava(folder):
    """A chat model that sees; Qwen2-VL has the same interface, but its processor needs torchvision."""
    t = transformers
    template = (
        "{% for m in messages %}{{ m['role'] }}:{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tokenizer = byte_pairs(prefix=("<image>",), additional_special_tokens=["<image>"])
    config = t.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **VISION},
        text_config={"model_type": "llama", "vocab_size": 400, "max_position_embeddings": 256, "bos_token_id": 1,
                     "eos_token_id": 2, "pad_token_id": 0, **TOWER},
        image_token_index=3, image_seq_length=16, vision_feature_layer=-1,
    )  # fmt: skip
    images = t.CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    options = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = t.LlavaProcessor(images, tokenizer, chat_template=template, **options)
    return save(folder, t.LlavaForConditionalGeneration(config), processor)


def llama(folder, *, chat=True):
    t = transformers
    template = (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )
    tokenizer = byte_pairs(**({"chat_template": template} if chat else {}))
    config = t.LlamaConfig(
        vocab_size=400, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0, **TOWER
    )
    return save(folder, t.LlamaForCausalLM(config), tokenizer)


def masked_bert(folder):
    config = transformers.BertConfig(vocab_size=400, max_position_embeddings=48, **TOWER)
    return save(folder, transformers.BertForMaskedLM(config), word_pieces(model_max_length=48))


def tagging_bert(folder):
    labels = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
    config = transformers.BertConfig(vocab_size=400, max_position_embeddings=48, id2label=labels, **TOWER)
    return save(folder, transformers.BertForTokenClassification(config), word_pieces(model_max_length=48))


def grounding_dino(folder):
    t = transformers
    swin = t.SwinConfig(
        image_size=128, patch_size=4, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = t.GroundingDinoConfig(
        backbone_config=swin, text_config=t.BertConfig(vocab_size=400, max_position_embeddings=64, **TOWER),
        num_queries=10, encoder_layers=1, encoder_ffn_dim=32, encoder_attention_heads=2, decoder_layers=2,
        decoder_ffn_dim=32, decoder_attention_heads=2, d_model=32, max_text_len=32,
    )  # fmt: skip
    images = t.GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    network = t.GroundingDinoForObjectDetection(config)
    return save(folder, network, t.GroundingDinoProcessor(images, word_pieces(model_max_length=32)))


def owl_vit(folder):
    t = transformers
    tokenizer = byte_pairs(model_max_length=16)
    config = t.OwlViTConfig(
        text_config=TOWER | CLIP_TEXT,
        vision_config=VISION, projection_dim=32,
    )  # fmt: skip
    processor = t.OwlViTProcessor(t.OwlViTImageProcessor(size=SIZE), tokenizer)
    return save(folder, t.OwlViTForObjectDetection(config), processor)


def stable_diffusion(folder, *, kind="StableDiffusionPipeline"):
    """One of diffusers' pipelines with a U-Net of two blocks; its pictures have 32 pixels."""
    import diffusers

    tokenizer = byte_pairs(model_max_length=16)
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TEXT, **TOWER))
    channels = {"StableDiffusionInpaintPipeline": 9, "StableDiffusionInstructPix2PixPipeline": 8}.get(kind, 4)
    attention = {"attention_type": "gated"} if "GLIGEN" in kind else {}
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=channels, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=2, **attention,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = getattr(diffusers, kind)(
        unet=unet, vae=vae, text_encoder=text, tokenizer=tokenizer, scheduler=diffusers.DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def pictures(n, size=(40, 48)):
    from mmjax.generate.backend import Picture

    return [Picture(np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)) for i in range(n)]
