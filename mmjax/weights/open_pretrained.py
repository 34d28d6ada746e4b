"""Finds out what a user's SPEC is: a folder or file in any of the layouts, or a name on the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.core.config import ConfigError, build
from mmjax.core.files import read_json_object
from mmjax.models import open_clip_json, presets
from mmjax.models.config import ClipConfig
from mmjax.weights.layouts import big_vision, hugging_face, open_clip, openai
from mmjax.weights.layouts import hugging_face_config as hf_config
from mmjax.weights.open_tensors import open_tensors
from mmjax.weights.pretrained import Pretrained, strip_prefixes
from mmjax.weights.tensors import TensorFile, one_line_errors

_CONFIGS = ("config.json", "open_clip_config.json")
_HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_BIG_VISION_WEIGHTS = "model.npz"  # as our export calls them
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SMALL_FILES = (
    *_CONFIGS, "preprocessor_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
_WRAPPERS = ("state_dict.", "model_state_dict.", "module.", "_orig_mod.")
_WAYS = "give a run folder, a folder of transformers or open_clip, a file of weights, or a hub name owner/name"


class Described(NamedTuple):
    """What can be said of weights without opening them."""

    config: ClipConfig
    tokenizer: str | None  # a folder or hub name


def read_model(spec: str) -> Described:
    """The model of ``spec`` and its tokenizer; also of a run folder of ours (``FOLDER@STEP`` or without a step)."""
    folder = find(spec.partition("@")[0])
    if folder is not None and (folder / "tokenizer").is_dir() and (folder / "config.json").exists():
        section = read_json(folder / "config.json")
        config = build(ClipConfig, section.get("model", {}), path=f"{folder / 'config.json'}: model")
        return Described(config, str(folder / "tokenizer"))
    pretrained = open_pretrained(spec)
    return Described(pretrained.config, pretrained.tokenizer)


def open_pretrained(spec: str, *, model: ClipConfig | None = None) -> Pretrained:
    """The model that ``spec`` names, opened but not read.

    Args:
        spec: A folder in transformers' or open_clip's layout (``local-dir:`` before it does no harm); a ``.npz`` file
            of big_vision or augreg; a file of open_clip's weights alone; or a name of the Hugging Face hub,
            ``owner/name`` or ``hf-hub:owner/name``, with ``@revision`` after it or not.
        model: What a file belongs to that has no configuration beside its weights.
    """
    path = find(spec.removeprefix("local-dir:"))
    if path is None:
        return _open_folder(_from_hub(spec), spec)
    return _open_folder(path, spec) if path.is_dir() else _open_file(path, spec, model)


def find(name: str) -> Path | None:
    """The path of that name, if there is something."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, or of an unknown user
        return None


def _open_folder(folder: Path, spec: str) -> Pretrained:
    sections = {name: read_json(folder / name) for name in _CONFIGS if (folder / name).exists()}
    tokenizer = str(folder) if (folder / "tokenizer_config.json").exists() else None
    hugging_face_section = sections.get("config.json", {})
    if str(hugging_face_section.get("model_type")) in hf_config.MODEL_TYPES:
        return _open_hugging_face(folder, spec, hugging_face_section, tokenizer)
    if "open_clip_config.json" in sections:
        section, path = sections["open_clip_config.json"], folder / "open_clip_config.json"
        with one_line_errors(path):  # values of other types than open_clip's make almost any error
            config = open_clip_json.convert(section.get("model_cfg", {}), path=f"{path}: model_cfg")
            config = _with_preprocessing(config, section.get("preprocess_cfg") or {})
            config = _with_clip_cleaning(config)
        file = open_tensors(_weights(folder, _OPEN_CLIP_WEIGHTS, spec))
        return _open_clip(spec, config, file, tokenizer or _find_tokenizer(config, folder))
    if (folder / _BIG_VISION_WEIGHTS).exists():
        return _open_big_vision(open_tensors(folder / _BIG_VISION_WEIGHTS), spec)
    if hugging_face_section.get("model_type"):
        raise ConfigError(
            f"{spec!r}: model_type={hugging_face_section['model_type']!r} is not supported; known: "
            f"{', '.join(hf_config.MODEL_TYPES)}"
        )
    raise ConfigError(f"{spec!r}: holds neither {' nor '.join(_CONFIGS)} of a known model; {_WAYS}")


def _open_hugging_face(folder: Path, spec: str, section: Mapping[str, Any], tokenizer: str | None) -> Pretrained:
    with one_line_errors(folder / "config.json"):
        config = hf_config.read_config(section, path=str(folder / "config.json"))
    config = _with_preprocessor(config, folder)
    family = hf_config.MODEL_TYPES[section["model_type"]]
    if family == "bert":
        file = open_tensors(_weights(folder, _HF_WEIGHTS, spec))
        file, bert_rules = hugging_face.open_bert(file, config.text_cfg, section["model_type"])
        return Pretrained(spec=spec, config=config, file=file, rules=bert_rules, tokenizer=tokenizer)
    rules = (hugging_face.clip_rules if family == "clip" else hugging_face.siglip_rules)(config)
    file = strip_prefixes(open_tensors(_weights(folder, _HF_WEIGHTS, spec)), _WRAPPERS)
    return Pretrained(spec=spec, config=config, file=file, rules=tuple(rules), tokenizer=tokenizer)


def _open_file(path: Path, spec: str, model: ClipConfig | None) -> Pretrained:
    file = open_tensors(path)
    if big_vision.recognizes(file):
        return _open_big_vision(file, spec)
    if openai.recognizes(unwrapped := strip_prefixes(file, _WRAPPERS)):
        if model is None:
            model = _with_clip_cleaning(openai.read_config(unwrapped))
        openai.check_activation(model, unwrapped)
    if model is None:
        raise ConfigError(
            f"{spec!r}: a file of weights alone; name its model ({', '.join(presets.names()[:3])}, …) by "
            "--config.model or mmjax.load(model=…), or put it into a folder as open_clip_pytorch_model.bin, beside "
            "open_clip_config.json"
        )
    return _open_clip(spec, model, file, _find_tokenizer(model, path.parent))


def _with_clip_cleaning(config: ClipConfig) -> ClipConfig:
    """Texts in lower case for CLIP's own tokenizer, which open_clip takes unless another is named in the file."""
    text = config.text_cfg
    if text.hf_tokenizer_name:
        return config
    text = dataclasses.replace(text, tokenizer_clean=text.tokenizer_clean or "lower")
    return dataclasses.replace(config, text_cfg=text)


def _find_tokenizer(config: ClipConfig, folder: Path) -> str | None:
    """The one that the model names, or CLIP's own list of merges if it lies beside the weights."""
    vocabulary = folder / openai.VOCABULARY
    return config.text_cfg.hf_tokenizer_name or (str(vocabulary) if vocabulary.exists() else None)


def _open_big_vision(file: TensorFile, spec: str) -> Pretrained:
    """The file alone, or with the tokenizer and the preprocessing that our export writes beside it."""
    pretrained, folder = big_vision.open_file(file, spec), file.path.parent
    tokenizer = str(folder) if (folder / "tokenizer_config.json").exists() else None
    config = _with_preprocessor(pretrained.config, folder)
    return dataclasses.replace(pretrained, config=config, tokenizer=tokenizer)


def _open_clip(spec: str, config: ClipConfig, file: TensorFile, tokenizer: str | None) -> Pretrained:
    file = strip_prefixes(file, _WRAPPERS)
    rules = open_clip.rules(config, text_prefix=open_clip.find_text_prefix(file.tensors))
    return Pretrained(spec=spec, config=config, file=file, rules=tuple(rules), tokenizer=tokenizer)


def _weights(folder: Path, names: tuple[str, ...], spec: str) -> Path:
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise ConfigError(f"{spec!r}: has no weights beside its configuration; expected {' or '.join(names)}")


def _with_preprocessor(config: ClipConfig, folder: Path) -> ClipConfig:
    """With transformers' ``preprocessor_config.json``, if the folder has one."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return config
    with one_line_errors(path):
        return _with_vision(config, hf_config.read_preprocessor(read_json(path)), path=str(path))


def _with_preprocessing(config: ClipConfig, section: Mapping[str, Any]) -> ClipConfig:
    """With open_clip's ``preprocess_cfg``."""
    keys = {"mean": "image_mean", "std": "image_std", "resize_mode": "image_resize"}
    return _with_vision(
        config, {ours: section[theirs] for theirs, ours in keys.items() if section.get(theirs)}, path="preprocess_cfg"
    )


def _with_vision(config: ClipConfig, keys: Mapping[str, Any], *, path: str) -> ClipConfig:
    vision = build(type(config.vision_cfg), {**dataclasses.asdict(config.vision_cfg), **keys}, path=path)
    return dataclasses.replace(config, vision_cfg=vision)


def read_json(path: Path) -> dict[str, Any]:
    """The section in a JSON file; raises ConfigError if there is none."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); fetch it again") from None


def _from_hub(spec: str) -> Path:
    name, _, revision = spec.removeprefix("hf-hub:").partition("@")
    prefixed = spec.startswith("hf-hub:")
    owner = Path(name).parts[0] if name else ""
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or (not prefixed and os.path.isdir(owner)):
        raise ConfigError(f"{spec!r}: no such file or folder; {_WAYS}")
    import huggingface_hub

    hub = functools.partial(huggingface_hub.snapshot_download, name, revision=revision or None)
    try:
        # One short request: the client repeats those for a list of files for most of a minute without a network.
        siblings = huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=10).siblings
    except Exception as error:  # whichever HTTP library the hub client uses this year
        try:  # offline, but downloaded before; whether the weights are there too, those who open the folder see
            return Path(hub(allow_patterns=_SMALL_FILES, local_files_only=True))
        except Exception:
            raise ConfigError(
                f"{spec!r}: no such file or folder, and the Hugging Face hub does not give it "
                f"({type(error).__name__}); {_WAYS}"
            ) from None
    config = Path(hub(allow_patterns=_SMALL_FILES)) / _CONFIGS[0]
    in_transformers = config.exists() and read_json(config).get("model_type") in hf_config.MODEL_TYPES
    # Many repositories have the same weights in both layouts, and in safe and pickled files of each.
    stems = ("model", "pytorch_model") if in_transformers else ("open_clip_model", "open_clip_pytorch_model")
    listed = [file.rfilename for file in siblings or ()]
    weights = [name for name in listed if name.startswith(stems) or name == _BIG_VISION_WEIGHTS]
    safe = [name for name in weights if name.endswith((".safetensors", ".safetensors.index.json"))]
    return Path(hub(allow_patterns=[*_SMALL_FILES, *(safe or weights)]))
