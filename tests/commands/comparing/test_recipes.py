"""Recipes: from the plug-in folders, from files, and from the command line."""

import json

import numpy as np
import pytest

from mmjax.commands.common.split_inspector import SplitInspector
from mmjax.commands.comparing import recipes
from mmjax.commands.comparing.recipes import check_plugins, make_recipes
from mmjax.commands.comparing.runs import check, list_runs
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from support import command

SCENES = "scenes:size=small"


def made(names, *, spec=SCENES, overrides=(), **options):
    return {recipe.name: recipe.experiment() for recipe in make_recipes(spec, overrides, names=names, **options)}


def test_every_plugin_of_the_three_folders_is_a_recipe_and_no_name_is_of_two():
    known = recipes.known_recipes()
    assert all(len(keys) == 1 for keys in known.values())
    for key, folder in recipes.KINDS.items():
        assert {name for name, keys in known.items() if keys == [key]} == set(plugins.names(folder))


def test_recipes_add_to_the_configuration():
    experiments = made(
        ["none", "lemda", "mixgen", "sigmoid", "lemda+m2mix+mixgen"],
        overrides=[("augment", "(('mixup', {'weight': 2.0}),)"), ("data.transforms", "(('flip', {}),)")],
    )
    plain = experiments["none"]
    assert plain.augment == (("mixup", {"weight": 2.0}),) and plain.data.transforms == (("flip", {}),)
    assert [name for name, _ in experiments["lemda"].augment] == ["mixup", "lemda"]
    assert experiments["lemda"].augment[0] == plain.augment[0]
    assert [name for name, _ in experiments["mixgen"].data.transforms] == ["flip", "mixgen"]
    assert experiments["sigmoid"].objective == {"name": "sigmoid"}
    assert experiments["sigmoid"].model.init_logit_bias == -10.0 and plain.model.init_logit_bias is None
    three = experiments["lemda+m2mix+mixgen"]
    assert [name for name, _ in three.augment] == ["mixup", "lemda", "m2mix"]
    assert [name for name, _ in three.data.transforms] == ["flip", "mixgen"]
    for experiment in experiments.values():
        check_plugins(experiment)


def test_a_transform_comes_after_those_of_its_stage():
    experiments = made(["caption_fields"], overrides=[("data.transforms", "(('flip', {}), ('mixgen', {}))")])
    assert [name for name, _ in experiments["caption_fields"].data.transforms] == ["caption_fields", "flip", "mixgen"]


TOML = """
[strong]
add = "lemda+mixgen"
augment.lemda.weight = 2.0
optimizer.learning_rate = 1e-3

["no smoothing"]
"objective.name" = "sigmoid"
"model.init_logit_bias" = -10.0
data.transforms = [["flip", {}], ["mixgen", {variant = "d"}]]
"""


def test_recipes_of_a_file(tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text(TOML)
    experiments = made([], file=str(file))
    assert list(experiments) == ["none", "strong", "no smoothing"]
    strong = experiments["strong"]
    assert strong.augment == (("lemda", {"weight": 2.0}),) and strong.optimizer.learning_rate == 1e-3
    assert strong.data.transforms == (("mixgen", {}),)
    plain = experiments["no smoothing"]
    assert plain.objective == {"name": "sigmoid"} and plain.data.transforms[1] == ("mixgen", {"variant": "d"})
    chosen = made(["strong+m2mix", "none", "tmmda"], file=str(file))
    assert list(chosen) == ["strong+m2mix", "none", "tmmda"]
    as_json = tmp_path / "recipes.json"
    as_json.write_text(json.dumps({"slow": {"optimizer": {"learning_rate": 1e-9}}}))
    assert made([], file=str(as_json))["slow"].optimizer.learning_rate == 1e-9


def test_variants_are_recipes_too():
    slow = make_recipes(SCENES, [("steps", "50")], variants=["long:steps=60;seed=1"])
    assert [recipe.name for recipe in slow] == ["none", "long"]
    assert slow[1].common == (("steps", "50"),) and slow[1].own == (("steps", "60"), ("seed", "1"))
    assert slow[1].experiment().steps == 60


def test_variants_may_be_named_among_the_recipes(tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text("[slow]\nsteps = 70\n")
    variants = ["long run:steps=60", "a+b:seed=1", "tokens:add=mixup;augment.mixup.tap=tokens@0"]
    experiments = made(["long run", "slow", "long run+lemda"], file=str(file), variants=variants)
    assert list(experiments) == ["long run", "slow", "long run+lemda", "a+b", "tokens"]
    assert experiments["long run"].steps == experiments["long run+lemda"].steps == 60
    assert [name for name, _ in experiments["long run+lemda"].augment] == ["lemda"]
    assert experiments["slow"].steps == 70 and experiments["a+b"].seed == 1
    assert experiments["tokens"].augment == (("mixup", {"tap": "tokens@0"}),)
    with pytest.raises(ConfigError, match="--variant=slow:…: is the name of another recipe"):
        made(["none"], file=str(file), variants=["slow:steps=60"])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["lemd"], {}, "--recipes=lemd: .*did you mean 'lemda'"),
        (["none", "lemda", "lemda"], {}, "--recipes: names lemda twice"),
        (["lemda+lemda"], {}, "--recipes=lemda: the configuration has it already in augment"),
        (["../up"], {}, "--recipes=../up"),
        ([], {"variants": ["none:steps=60"]}, "--variant=none:…: is the name of another recipe"),
        ([], {"variants": ["long:steps=60", "long:steps=70"]}, "--variant=long:…: is the name of another recipe"),
        (["none", "lon"], {"variants": ["long:steps=60"]}, "--recipes=lon: .*did you mean 'long'"),
        ([], {"variants": ["long:add=lemdaa"]}, "--recipes=lemdaa: .*did you mean 'lemda'"),
        ([], {"variants": ["../up:steps=60"]}, "'../up' is no name of a folder"),
        ([], {"variants": [":steps=60"]}, "'' is no name of a folder"),
        ([], {"variants": ["long"]}, "--variant='long': expected NAME:KEY=VALUE"),
        ([], {"variants": ["long:"]}, "expected NAME:KEY=VALUE"),
        ([], {"variants": ["long:steps"]}, "expected NAME:KEY=VALUE"),
        ([], {"file": "nowhere.toml"}, "--recipes-file=nowhere.toml: cannot be read"),
    ],
)
def test_mistakes_name_the_flag(names, options, message):
    with pytest.raises(ConfigError, match=message):
        make_recipes(SCENES, [], names=names, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[a\n", "cannot be read as TOML"),
        ("a = 1\n", "'a' must be a table of KEY = VALUE"),
        ("[a]\n", "'a' must be a table of KEY = VALUE"),
        ("['a+b']\nsteps = 1\n", r"'a\+b' has a '\+' or ','"),
        ("[a]\nadd = 'b'\n[b]\nsteps = 2\n", "the recipe 'a': add='b': expected built-in recipes"),
        ("[a]\nadd = 'mixgenn'\n", "--recipes=mixgenn: .*'mixgen'"),
    ],
)
def test_mistakes_in_a_file_are_one_line(content, message, tmp_path):
    file = tmp_path / "recipes.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_recipes(SCENES, [], file=str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [("cutswitch", "data.modalities=.*two or more"), ("rewrites", "data.transforms.rewrites.paths=.*needs tables")],
)
def test_what_the_configuration_cannot_take_is_found_before_anything_trains(name, message):
    [recipe] = make_recipes(SCENES, [], names=[name])
    with pytest.raises(ConfigError, match=message):
        check_plugins(recipe.experiment())


def test_wrong_options_are_found_before_anything_trains(tmp_path):
    spec = str(command.config_file(tmp_path))
    for variant, message in (
        ("a:augment=(('lemda', {'weigth': 1}),)", "augment.lemda.weigth"),
        ("a:objective.impl=fast", "objective.impl='fast'"),
    ):
        recipe = make_recipes(spec, [], variants=[variant])[-1]
        with pytest.raises(ConfigError, match=message):
            check_plugins(recipe.experiment())


def test_runs_that_would_measure_nothing_do_not_train():
    recipes = make_recipes("files:train=pairs.csv", [], names=["none", "mixup"])
    with pytest.raises(ConfigError, match=r"recipe 'none': eval.final_tasks=\(\): .*nothing to compare; .*val=PATH"):
        check(list_runs(recipes, seeds=[0]), metrics=[])
    recipes = make_recipes("files:train=pairs.csv,val=val.csv", [], names=["none", "mixup"])
    check(list_runs(recipes, seeds=[0]), metrics=[])


def test_all_recipes_see_the_same_examples_in_the_same_order(tmp_path):
    experiments = made(["none", "mixgen", "flip+lemda", "sigmoid"], spec=str(command.config_file(tmp_path)))
    orders = []
    for experiment in experiments.values():
        batches = SplitInspector(experiment, "train").batches
        orders.append(np.concatenate([batches[step]["image_ids"].reshape(16, -1)[:, 0] for step in range(4)]))
    assert len(set(orders[0].tolist())) > 16
    for order in orders[1:]:
        np.testing.assert_array_equal(order, orders[0])
