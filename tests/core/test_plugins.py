import sys
import textwrap

import pytest

from mmjax.core import plugins
from mmjax.core.config import ConfigError

FOLDERS = ["mmjax.evals", "mmjax.objectives", "mmjax.data.sources", "mmjax.augment"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A package of plug-ins, beside them a folder and one that cannot be imported."""
    package = tmp_path / "plugged"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "common").mkdir()
    (package / "common" / "__init__.py").write_text("")
    (package / "broken.py").write_text("import no_such_module\n")
    (package / "notes.txt").write_text("")
    (package / "blur.py").write_text(
        textwrap.dedent(
            """
            class Augment:
                def __init__(self, *, width: int = 3, rate: float = 0.5, size: int = 0):
                    self.options = (width, rate, size)
            """
        )
    )
    (package / "needy.py").write_text("class Augment:\n    def __init__(self, *, width: int):\n        pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "plugged"
    for name in [n for n in sys.modules if n.split(".")[0] == "plugged"]:
        del sys.modules[name]


def make(folder, section, **given):
    return plugins.make(folder, "Augment", section, path="augment", **given)


def test_names_are_the_modules(folder):
    assert plugins.names(folder) == ["blur", "broken", "needy"]
    assert "plugged.broken" not in sys.modules


def test_loading(folder):
    assert plugins.load(folder, "blur", path="p").__name__ == "plugged.blur"
    with pytest.raises(ConfigError, match=r"p='blurr': no such name; did you mean 'blur'\?"):
        plugins.load(folder, "blurr", path="p")
    with pytest.raises(ConfigError, match="p='common': no such name"):
        plugins.load(folder, "common", path="p")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        plugins.load(folder, "broken", path="p")


def test_making(folder):
    section = {"name": "blur", "rate": 1}
    assert make(folder, section, size=7).options == (3, 1.0, 7)
    assert section == {"name": "blur", "rate": 1}
    assert make(folder, {"name": "blur"}).options == (3, 0.5, 0)
    assert make(folder, {"name": "needy"}, width=3)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "augment={}: the section is empty; name one of blur, broken, needy"),
        ({"width": 3}, "augment.name is missing; known: blur, broken, needy"),
        ({"name": "blr"}, "augment.name='blr': no such name; did you mean 'blur'?"),
        ({"name": None}, "augment.name=None: no such name"),
        ({"name": "blur", "widht": 3}, "augment.widht=3: unknown key; did you mean 'width'?"),
        ({"name": "blur", "size": 3}, "augment.size=3: unknown key"),
        ({"name": "needy"}, "augment.width is missing; set it to a int"),
        ("blur", "augment='blur': expected a section with a name"),
        (None, "augment=None: expected a section with a name"),
    ],
)
def test_errors_name_the_key(folder, section, message):
    with pytest.raises(ConfigError) as caught:
        make(folder, section, **({"size": 1} if "needy" not in str(section) else {}))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_shipped_plugin_can_be_imported_and_says_what_it_is(folder):
    for name in plugins.names(folder):
        assert plugins.load(folder, name, path="p").__doc__, name


def test_a_class_that_is_not_whole_is_refused_by_what_it_lacks(folder, tmp_path):
    base = "import abc\nclass Augment(abc.ABC):\n    @abc.abstractmethod\n    def __len__(self): ...\n"
    (tmp_path / "plugged" / "partial.py").write_text(base)
    with pytest.raises(ConfigError, match=r"augment\.name=.partial.: its class Augment lacks __len__; define them"):
        make(folder, {"name": "partial"})
