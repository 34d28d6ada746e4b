"""The shipped configurations: that each is one, says the truth of itself, and fits the slice that it names."""

import ast
import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest

import mmjax
from mmjax import cli
from mmjax.augment.style import Augmentation
from mmjax.checkpoints.manager import Checkpoints
from mmjax.commands.comparing.recipes import check_plugins, make_recipes
from mmjax.config_file import load_config, shipped_configs
from mmjax.core.config import ConfigError, bind
from mmjax.core.state import flatten
from mmjax.data.selection import Selection
from mmjax.evals.common.metric_names import check_metric
from mmjax.experiment import Experiment
from mmjax.parallel.mesh import MeshConfig
from mmjax.planning.abstract_data import batch_shapes, resolve_without_data
from mmjax.train.loop import train
from mmjax.train.program import Program
from mmjax.train.setup import setup
from support import archives, command, pretrained_towers
from support.pictures import encoded, photograph

FILES = [p for p in sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py")) if p.stem != "common"]
DOCS = {path.stem: ast.get_docstring(ast.parse(path.read_text())) for path in FILES}
DEVICES = 8

# Batch, learning rate, weight decay, second beta, and examples seen, as the sources that the files name have them.
RECIPES = {
    "albef_b16": (512, 1e-4, 0.02, 0.999, 30 * 5.1e6),
    "albef_b16:method=tcl": (512, 1e-4, 0.02, 0.999, 30 * 5.1e6),
    "cappa_b16": (8192, 1e-3, 1e-4, 0.999, 366_500 * 8192),
    "coca_b16": (90_112, 1e-3, 0.2, 0.98, 13e9),
    "coco_finetune_b16": (256, 1e-6, 0.2, 0.98, 5 * 113_287),
    "datacomp:track=large": (8192, 5e-4, 0.2, 0.98, 1.28e9),
    "datacomp:track=medium": (4096, 5e-4, 0.2, 0.98, 128e6),
    "laclip:data=cc12m": (8192, 1e-3, 0.5, 0.98, 35 * 10_968_539),
    "laclip:data=cc3m": (8192, 1e-3, 0.5, 0.98, 35 * 3_318_333),
    "laion_l14": (32768, 4e-4, 0.2, 0.98, 32 * 407_332_084),
    "siglip_b16": (32768, 1e-3, 1e-4, 0.95, 9e9),
    "vilt_b32": (4096, 1e-4, 0.01, 0.98, 200_000 * 4096),
}
VOCABULARIES = {
    "siglip_b16": 32000, "cappa_b16": 32000, "albef_b16": 30522, "albef_b16:method=tcl": 30522, "vilt_b32": 30522,
}  # fmt: skip
OBJECTIVES = {
    "siglip_b16": "sigmoid", "coca_b16": "caption", "cappa_b16": "caption", "albef_b16": "albef",
    "albef_b16:method=tcl": "tcl", "vilt_b32": "fusion",
}  # fmt: skip


def experiment(name, arg=""):
    """That of a file, or of a file and an argument (``datacomp:track=large``)."""
    stem, _, own = name.partition(":")
    path = next(path for path in FILES if path.stem == stem)
    return Experiment.from_dict(load_config(f"{path}:{','.join(filter(None, (own, arg)))}"))


def slice_of(name):
    """Topology, chips and images on each that a docstring names, for the argument if it says so."""
    stem, _, arg = name.partition(":")
    slices = re.findall(r"^Slice(?: for ``(\S+)``)?: (\S+) \((\d+) chips, (\d+) images each\)\.$", DOCS[stem], re.M)
    return next((topology, int(chips), int(images)) for key, topology, chips, images in slices if key in ("", arg))


def documented_arguments(doc):
    return set(re.findall(r"``(\w+)=", doc.partition("Arguments:")[2]))


def accepted_arguments(path):
    with pytest.raises(ConfigError) as caught:
        load_config(f"{path}:no_such_argument=1")
    return set(re.search(r"known: (.*), as name=value", str(caught.value))[1].split(", "))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_an_experiment_that_can_be_planned_without_data(path):
    config = experiment(path.stem)
    assert Experiment.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config, _ = resolve_without_data(config, shards=DEVICES)
    mesh = MeshConfig(fsdp=math.gcd(config.mesh.fsdp, DEVICES))
    state = Program(Experiment.from_dict(config.to_dict() | {"mesh": vars(mesh)})).abstract_state
    assert state.params and batch_shapes(config).tokens.shape[0] == config.batch_size * config.data.captions_per_image


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_takes_the_arguments_that_it_names(path):
    assert documented_arguments(DOCS[path.stem]) - {"split"} == accepted_arguments(path)


def test_shipped_configs_are_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_path = load_config(f"{FILES[0].parent}/scenes.py:size=large")
    assert load_config("scenes:size=large", [("seed", "3")]) == by_path | {"seed": 3}
    assert shipped_configs().keys() == {path.stem for path in FILES}
    for wrong in ("configs/scenes.py", "scnees", "common"):
        with pytest.raises(ConfigError, match=f"^--config={wrong}: neither a file nor a shipped .*(scenes|known)"):
            load_config(wrong)
    (tmp_path / "scenes").write_text("def get_config(arg):\n    return {'steps': 1}\n")
    assert load_config("scenes") == {"steps": 1}  # a file of that name comes first


def test_an_installed_package_has_them_inside(tmp_path):
    # As pyproject.toml has the wheel built.
    project = tomllib.loads((FILES[0].parents[1] / "pyproject.toml").read_text())
    for source, target in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].items():
        shutil.copytree(FILES[0].parents[1] / source, tmp_path / "site" / target)
    shutil.copytree(Path(mmjax.__file__).parent, tmp_path / "site" / "mmjax", dirs_exist_ok=True)
    code = "from mmjax.config_file import load_config; print(load_config('laclip:data=cc3m')['batch_size'])"
    path = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | path, capture_output=True, text=True
    )
    assert done.stdout == "8192\n", done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_a_real_run_is_as_its_docstring_says(name):
    config, doc = experiment(name), DOCS[name.partition(":")[0]]
    topology, chips, images = slice_of(name)
    assert math.prod(map(int, topology.partition(":")[2].split("x"))) == chips
    assert config.batch_size == chips * images and chips % config.mesh.fsdp == 0
    optimizer = config.optimizer
    batch, rate, decay, b2, seen = RECIPES[name]
    assert (config.batch_size, optimizer.learning_rate, optimizer.weight_decay, optimizer.b2) == (
        batch,
        rate,
        decay,
        b2,
    )
    assert config.steps * batch == pytest.approx(seen, rel=0.01) and f"{batch:,}" in doc
    assert re.search(r"arXiv:\d{4}\.\d{5}", doc) and "Our own choices:" in " ".join(doc.split())
    assert config.precision == "bfloat16" and optimizer.warmup_steps < config.steps / 10
    _, notes = resolve_without_data(config, shards=chips)
    assert not notes  # nothing of it is guessed, and evaluation's batches divide over the slice
    text = config.model.text_cfg
    assert text.vocab_size == VOCABULARIES.get(name, 49408) and "/" in config.data.tokenizer["name"]
    assert config.objective["name"] == OBJECTIVES.get(name, "contrastive")


@pytest.mark.parametrize(
    ("arg", "batch", "rate", "warmup", "decay", "seen", "images", "distillation"),
    [
        ("", 128, (2e-5, 1e-6), 674, 0.02, 10 * 86_373, 2, 0.4),
        ("task=snli_ve", 256, (2e-5, 1e-6), 2068, 0.02, 5 * 529_527, 1, 0.4),
        ("method=vilt", 128, (1e-4, 0.0), 674, 0.01, 10 * 86_373, 2, 0.0),
        ("task=refcoco", 256, (1e-5, 1e-6), 0, 0.02, 5 * 120_191, 1, 0.4),
    ],
)
def test_fusion_encoders_are_fine_tuned_as_published(arg, batch, rate, warmup, decay, seen, images, distillation):
    config = experiment("fusion_finetune", arg)
    optimizer = config.optimizer
    assert (config.batch_size, optimizer.learning_rate, optimizer.weight_decay) == (batch, rate[0], decay)
    assert optimizer.final_fraction * rate[0] == pytest.approx(rate[1]) and optimizer.warmup_steps == warmup
    assert config.steps * batch == pytest.approx(seen, rel=0.01)
    assert config.model.fusion.images == len(config.data.modalities) == images
    assert config.model.fusion.answers == len(config.objective.get("answers", ()))
    assert config.objective.get("distillation", 0.0) == distillation


def test_fine_tuning_for_grounding_sees_whole_pictures_and_measures_all_splits():
    paths = "train=/a/refs(unc).p,val=/a/refs(unc).p,proposals=/a/dets.json,images=/a/train2014"
    config = experiment("fusion_finetune", f"task=refcoco,{paths}")
    assert config.data.transforms[0] == ("resize_crop", {"mode": "squash", "resample": "fast"})
    assert config.data.evaluation == {"path": "/a/refs(unc).p", "proposals": "/a/dets.json"}
    assert config.eval.final_tasks == ("refcoco",) and config.eval.final_splits == ("val", "testA", "testB")
    assert config.objective["name"] == "albef" and config.objective["words_weight"] == 0
    assert (config.checkpoint.best, config.eval.weights) == ("val/refcoco/accuracy", "best")
    check_metric(config.checkpoint.best, tasks=config.eval.tasks, splits=(config.eval.split,), path="checkpoint.best")
    with pytest.raises(ConfigError, match="task=snli_ve: ViLT was not fine-tuned on it"):
        experiment("fusion_finetune", "method=vilt,task=snli_ve")
    with pytest.raises(ConfigError, match=r"proposals='/a/dets\.json': is for the evaluation of task=refcoco; set val"):
        experiment("fusion_finetune", "task=refcoco,proposals=/a/dets.json")


@pytest.mark.parametrize(
    "name",
    [
        "fusion_finetune:task=refcoco",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "fusion_finetune",
                "fusion_finetune:task=snli_ve",
                "fusion_finetune:method=vilt",
                "albef_b16:method=tcl",
            )
        ),
    ],
)
def test_each_form_of_a_fusion_encoder_can_be_traced(name):
    """The whole step, with as few blocks as show its structure."""
    sections = experiment(name).to_dict()
    for tower in ("vision_cfg", "text_cfg", "fusion"):
        sections["model"][tower]["layers"] = min(sections["model"][tower]["layers"], 1)
    config, _ = resolve_without_data(Experiment.from_dict(sections | {"batch_size": DEVICES}), shards=DEVICES)
    program = Program(config)
    state, metrics = jax.eval_shape(program.step, program.abstract_state, batch_shapes(config))
    assert metrics["loss"].shape == () and jax.tree.structure(state) == jax.tree.structure(program.abstract_state)


def test_every_file_with_a_slice_is_checked():
    assert {path.stem for path in FILES if "Slice" in DOCS[path.stem]} == {name.partition(":")[0] for name in RECIPES}


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - {"cappa_b16"}))  # which embeds no texts to evaluate
def test_paths_augmentations_and_transforms_reach_the_run(name):
    config = experiment(name, "train=/a/{00..09}.tar,val=/b/{split},augment=m2mix,batch=512,transforms=flip")
    assert config.data.source["path"] == "/a/{00..09}.tar" and config.data.evaluation["path"] == "/b/{split}"
    assert [entry for entry, _ in config.augment] == ["m2mix"]
    assert [entry for entry, _ in config.data.transforms] == ["flip"]
    assert config.batch_size == config.eval.batch_size == 512 and config.eval.tasks == ("retrieval",)
    assert config.steps * 512 == pytest.approx(RECIPES[name][-1], rel=0.01)


def test_what_is_measured_can_be_chosen_and_needs_data():
    assert experiment("laclip").eval.tasks == experiment("laclip").eval.final_tasks == ()
    assert experiment("laclip", "val=/b/{split},tasks=retrieval+zeroshot").eval.final_tasks == ("retrieval", "zeroshot")
    with pytest.raises(ConfigError, match="did you mean 'retrieval'"):
        experiment("laclip", "val=/b,tasks=retreival")


@pytest.mark.parametrize("name", ["datacomp:track=medium", "datacomp:track=large"])
def test_datacomps_filters_are_selections(name):
    def selection(arg):
        section = experiment(name, arg).data.train["selection"]
        return None if section is None else Selection(**bind(Selection, section, path="selection"))

    assert selection("") is None
    assert selection("filter=basic").max_aspect == 3.0 and selection("filter=basic").width == "original_width"
    assert (selection("filter=clip_score,score=b32").score, selection("filter=clip_score").top) == ("b32", 0.3)
    with pytest.raises(ConfigError, match="filter='clip': no such name"):
        selection("filter=clip")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """``small.py`` on towers and data of a few kilobytes: its experiment, and the arrays of both towers."""
    folder = tmp_path_factory.mktemp("small")
    examples = [(f"{i:03d}", encoded(photograph(36, 40, seed=i)), [f"picture number {i}"]) for i in range(32)]
    for split in ("train", "val", "test"):
        archives.write_webdataset(folder / split, examples[: 32 if split == "train" else 16])
    (folder / "bert").mkdir()
    arrays = pretrained_towers.write_augreg(folder / "s16.npz")
    tensors = pretrained_towers.write_distilbert(folder / "bert")
    arguments = (
        f"train={folder}/{{split}}/00000.tar,vision={folder}/s16.npz,text={folder}/bert,images=32,batch=16,epochs=2"
    )
    overrides = [("model", "init"), ("model.embed_dim", "16"), ("model.text_cfg.context_length", "12")]
    sections = load_config(f"{FILES[0].parent}/small.py:{arguments},rank=2", overrides)
    return Experiment.from_dict(sections), arrays, tensors


def test_small_starts_from_an_augreg_tower_and_distilbert(small):
    configured, arrays, tensors = small
    published, tower = experiment("small").model, configured.model.vision_cfg
    sizes = {"image_size": 224, "patch_size": 16, "width": 384, "layers": 12, "head_width": 64}
    assert dataclasses.replace(tower, **sizes) == published.vision_cfg and tower.width == 32
    text = {"width": 768, "layers": 6, "heads": 12, "context_length": 64, "num_positions": 512, "vocab_size": 30522}
    assert dataclasses.replace(configured.model.text_cfg, **text, pad_id=None) == published.text_cfg
    program = setup(configured).program
    params = {path: np.asarray(leaf) for path, leaf in flatten(program.initialize().params).items()}
    queries = [arrays[f"Transformer/encoderblock_{k}/MultiHeadDotProductAttention_1/query/kernel"] for k in range(2)]
    np.testing.assert_array_equal(params["visual/blocks/attn/query/kernel"], np.stack(queries))
    hidden = tensors["transformer.layer.1.ffn.lin1.weight"].T
    np.testing.assert_array_equal(params["text/blocks/mlp/fc1/kernel"][1], hidden)
    np.testing.assert_array_equal(params["text/token_embed/embedding"], tensors["embeddings.word_embeddings.weight"])
    # Of each tower six maps of two layers, the patches, both projections and the temperature.
    maps = 2 * (4 * (32 + 32) + 2 * (32 + 128))
    assert program.trained_parameters == 2 * (2 * maps + 8 * 8 * 3 + 32) + 2 * 32 * 16 + 1


@pytest.mark.slow
def test_small_trains_end_to_end(small, tmp_path, capsys):
    configured, arrays, tensors = small
    outcome = train(configured, workdir=tmp_path / "run")
    assert outcome.finished and outcome.step == 4 and np.isfinite(outcome.metrics["test/rsum"])
    assert re.search(r"parameters, [\d,]+ of them trained \(\d", capsys.readouterr().out)
    params = Checkpoints(tmp_path / "run", read_only=True).read_params()
    keys = [arrays[f"Transformer/encoderblock_{k}/MultiHeadDotProductAttention_1/key/kernel"] for k in range(2)]
    np.testing.assert_array_equal(params["visual/blocks/attn/key/kernel"], np.stack(keys))
    np.testing.assert_array_equal(params["text/token_embed/embedding"], tensors["embeddings.word_embeddings.weight"])
    assert all(np.any(array) for path, array in params.items() if path.endswith("/lora/b"))
    model = mmjax.load(tmp_path / "run")
    assert model.similarity([photograph(36, 40, seed=1)], ["picture number 1"]).shape == (1, 1)
    assert cli.main(["inspect", f"--workdir={tmp_path / 'run'}"]) == 0
    assert (
        cli.main(["export", f"--workdir={tmp_path / 'run'}", "--format=open_clip", f"--output={tmp_path / 'out'}"]) == 2
    )
    assert "open_clip cannot express" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'mmjax[aot]'")
@pytest.mark.parametrize("name", RECIPES)
def test_a_real_run_fits_the_slice_that_it_names(name):
    topology, chips, _ = slice_of(name)
    stem, _, arg = name.partition(":")
    words = ["compile", f"--config={Path('configs').resolve()}/{stem}.py:{arg}", f"--topology={topology}", "--json"]
    said = subprocess.run(
        [sys.executable, "-m", "mmjax", *words],
        env=command.environment(XLA_FLAGS="", ALLOW_MULTIPLE_LIBTPU_LOAD="1"),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    plan = json.loads(said.stdout)
    assert plan["fits"] and plan["topology"] == topology and plan["chips"] == chips
    assert plan["flops"] > plan["model_flops"] > 0


def test_every_recipe_of_the_style_grids_is_an_experiment_and_the_ratios_are_those_of_the_paper():
    ratios, strengths = [], []
    for recipe in make_recipes(str(FILES[0].parent / "style.py"), (), file=str(FILES[0].parent / "style.toml")):
        options = dict(recipe.experiment().augment)
        check_plugins(recipe.experiment())
        assert ("style" in options) == (recipe.name not in ("none", "traditional"))
        if recipe.name.startswith("ratio"):
            ratios.append(Augmentation(**options["style"]).fraction)
        if recipe.name.startswith("alpha"):
            strengths.append(options["style"]["alpha"])
    unchanged_to_changed = [2.0**k for k in range(4, -6, -1)]  # 16:1 to 1:32
    assert ratios == pytest.approx([1 / (1 + r) for r in unchanged_to_changed])
    assert strengths == [0.1, 0.25, 0.5, 0.75, 1.0]


def test_every_recipe_of_hard_negatives_is_an_experiment():
    recipes = make_recipes(str(FILES[0].parent / "scenes.py"), (), file=str(FILES[0].parent / "negatives.toml"))
    for recipe in recipes:
        made = recipe.experiment()
        check_plugins(made)
        has_own_batches = recipe.name == "simclip"
        assert (made.data.clusters is not None) == has_own_batches
        plain = recipe.name == "none" or has_own_batches
        assert made.objective["name"] == ("contrastive" if plain else recipe.name)


def test_the_recipes_of_mixgen_are_its_variants_all_rows_and_other_labels():
    recipes = make_recipes(str(FILES[0].parent / "scenes.py"), (), file=str(FILES[0].parent / "mixgen.toml"))
    for recipe in recipes:
        check_plugins(recipe.experiment())
    options = [dict(recipe.experiment().data.transforms).get("mixgen") for recipe in recipes]
    variants = [{"variant": variant} for variant in "abcde"]
    assert options == [None, {}, *variants, {"fraction": 1.0}, {}, {}]
    labels = [dict(recipe.experiment().objective) for recipe in recipes]
    papers = {"targets": "identity"}
    for own, wanted in zip(labels, [{}, *[papers] * 7, papers | {"mask_partners": True}, {}], strict=True):
        assert {key: value for key, value in own.items() if key != "name"} == wanted


def test_styles_are_measured_where_the_configuration_says():
    scenes, emoji = experiment("style"), experiment("style:data=emoji,path=data/other")
    assert scenes.eval.final_splits == ("test", "test_hue", "test_cast")
    assert emoji.eval.final_splits == ("style", "style_val", "test") and emoji.data.source["path"].startswith(
        "data/other"
    )
    with pytest.raises(ConfigError, match=r"data='stl'"):
        experiment("style:data=stl")
