"""Styles that training never saw: a held-out rendering of the emoji, or scenes in other colors.

Arguments: ``data=scenes|emoji``, ``path=DIR`` (of the emoji, made with ``mmjax data fetch emoji --held-out=STYLE``),
``augment=NAME[+NAME]``, ``transforms=NAME[+NAME]``, ``size=small|medium|large`` (of scenes), ``model=NAME``.

Scenes are measured as they are (``test``), with rotated hues (``test_hue``) and in colored light (``test_cast``); emoji
in the held-out style (``style``), in a third one (``style_val``) and on unseen emoji (``test``). Zero-shot and a linear
probe that was trained on the seen style are measured in the new one. The grids of ``configs/style.toml`` are recipes::

    mmjax compare --config=configs/style.py --recipes-file=configs/style.toml --seeds=5 --workdir=runs/style
"""

import emoji
import ml_collections
import scenes
from common import parse_arguments

from mmjax.core.config import choose


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    args = parse_arguments(
        arg, data="scenes", path="data/emoji", augment="none", transforms="none", size="small", model="scenes-tiny"
    )
    common = f"augment={args.augment},transforms={args.transforms},model={args.model}"
    choose(args.data, ("scenes", "emoji"), path="data")
    if args.data == "emoji":
        config = emoji.get_config(f"{common},path={args.path}")
        config.eval.final_splits = ("style", "style_val", "test")
        config.eval.final_tasks = ("retrieval", "zeroshot", "linear_probe")
        # The probe learns from the split train, which has no labels of its own.
        classes = {key: config.data.evaluation[key] for key in ("label_column", "class_names")}
        config.eval.options = {"linear_probe": {"train_split": "train", "shots": (), "source": classes}}
        return config
    config = scenes.get_config(f"{common},size={args.size}")
    config.eval.final_splits = ("test", "test_hue", "test_cast")
    config.eval.final_tasks = ("retrieval", "zeroshot", "linear_probe")
    config.eval.options = {
        "zeroshot": {"split": "zeroshot_hue"},
        "linear_probe": {"split": "zeroshot_hue", "train_split": "zeroshot", "shots": ()},
    }
    return config
