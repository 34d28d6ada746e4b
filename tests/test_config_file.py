"""Overrides of a config file's sections."""

import pytest

from mmjax.config_file import load_config
from mmjax.core.config import ConfigError
from mmjax.experiment import Experiment


@pytest.mark.parametrize(
    ("text", "names"),
    [("mixup", ("mixup",)), ("mixup+lemda", ("mixup", "lemda")), ("mixup,lemda", ("mixup", "lemda")), ("none", ())],
)
def test_augmentations_and_transforms_may_be_named_alone(text, names):
    before = [("augment", "(('m2mix', {}),)")]
    assert load_config("scenes", [*before, ("augment", text)])["augment"] == tuple((name, {}) for name in names)


def test_what_is_named_takes_options_that_follow():
    overrides = [("augment", "mixup"), ("augment.mixup.tap", "tokens@0"), ("data.transforms", "flip")]
    experiment = Experiment.from_dict(load_config("scenes", overrides))
    assert experiment.augment == (("mixup", {"tap": "tokens@0"}),)
    assert experiment.data.transforms == (("flip", {}),)


def test_a_wrong_name_is_an_error_with_the_right_one():
    with pytest.raises(ConfigError, match="augment='mixupp': no such name; did you mean 'mixup'"):
        Experiment.from_dict(load_config("scenes", [("augment", "mixupp")]))


def test_options_of_what_is_not_there_say_how_to_add_it():
    with pytest.raises(ConfigError, match=r"augment.mixup.tap=input: .*add it by --config.augment=lemda\+mixup"):
        load_config("scenes", [("augment", "lemda"), ("augment.mixup.tap", "input")])
    with pytest.raises(ConfigError, match="has no such entry; did you mean 'mixup'"):
        load_config("scenes", [("augment", "mixup"), ("augment.mixupp.tap", "input")])
