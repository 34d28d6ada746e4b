"""Pages of the documentation: links resolve, every page is in the index, named files and keys exist."""

import dataclasses
import inspect
import re
import typing

import pytest

from mmjax.core import plugins
from mmjax.experiment import Experiment
from support import documents
from support.documents import DOCS, PAGES, ROOT

README_LINES = 160
GUIDE_LINES = 250  # of a page that is read, not looked up in
IMAGE_BYTES = 200_000
SECTIONS = {field.name for field in dataclasses.fields(Experiment)}
PLUGINS = {
    "eval.options": ("mmjax.evals", "Evaluator"),
    "objective": ("mmjax.objectives", "Objective"),
    "augment": ("mmjax.augment", "Augmentation"),
    "data.transforms": ("mmjax.data.transforms", "Transform"),
    "data.source": ("mmjax.data.sources", "Source"),
}

pages = pytest.mark.parametrize("page", PAGES, ids=documents.name_of)


@pages
def test_links_lead_somewhere(page):
    for target in documents.links(page):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.suffix == ".md" and page.suffix == ".rst" and not file.exists():
            file = file.with_suffix(".rst")
        assert file.exists(), f"{target}: no such page"
        assert not anchor or anchor in documents.anchors(file), f"{target}: no such heading"


def test_the_index_has_every_page():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    menus = [block.code for page in PAGES for block in documents.blocks(page, "toctree")]  # a page may list its own
    listed = re.findall(r"^[\w/]+$", "\n".join(menus), re.M)
    names = sorted(page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if DOCS in page.parents)
    assert sorted([*listed, "index"]) == names
    linked = {target.partition(".")[0] for target in documents.links(DOCS / "index.md")}
    assert linked == set(listed), "links and toctrees differ"
    assert index.startswith("# mmjax\n")


def test_the_readme_is_short_and_leads_to_every_guide():
    readme = ROOT / "README.md"
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= README_LINES
    guides = {page for page in DOCS.glob("*.md") if page.stem not in ("changelog", "contributing")}
    reached = {(ROOT / target.partition("#")[0]).resolve() for target in documents.links(readme)}
    further = {(DOCS / target.partition("#")[0]).resolve() for target in documents.links(DOCS / "index.md")}
    assert guides <= reached | further


def test_the_readme_counts_right():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    counted = [
        (r"(\d+) changes to pictures, captions and rows", "mmjax.data.transforms", 0),
        (r"(\d+) changes to features and pictures", "mmjax.augment", 0),
        (r"InfoNCE, sigmoid, and (\d+) more", "mmjax.objectives", 2),
    ]
    for pattern, folder, named in counted:
        assert int(re.search(pattern, text)[1]) == len(plugins.names(folder)) - named, folder
    recipes = len(list((ROOT / "configs" / "generate").glob("*.py"))) - len(["common.py"])
    assert recipes == 14 and "fourteen published recipes" in text


def test_no_guide_is_too_long_to_find_something_in():
    guides = [page for page in DOCS.rglob("*.md") if page.stem not in ("open_clip_files", "changelog")]
    lengths = {documents.name_of(page): len(page.read_text(encoding="utf-8").splitlines()) for page in guides}
    assert {name: length for name, length in lengths.items() if length > GUIDE_LINES} == {}


def test_the_tests_command_of_the_readme_is_the_first_line_of_its_block():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Tests\n", 1)[1]
    first = section.split("```bash\n", 1)[1].splitlines()[0]
    assert first.startswith("python3 -m venv .venv && ") and ".venv/bin/pytest" in first


def test_pictures_are_small():
    images = [path for path in DOCS.rglob("*") if path.suffix in (".png", ".jpg", ".svg")]
    assert images and all(path.stat().st_size < IMAGE_BYTES for path in images)


@pages
def test_named_files_are_in_the_tree(page):
    for code in documents.inline_code(page):
        path = code.partition(":")[0]
        if re.fullmatch(r"(mmjax|tests|configs|launch|docs)/[\w./]*|[a-z_]+/[a-z_/]+\.py", path):
            assert (ROOT / path).exists() or (ROOT / "mmjax" / path).exists(), f"{code}: no such file"


@pages
def test_named_keys_are_in_the_schema(page):
    if page.name == "CHANGELOG.md":
        return  # names old keys too
    for code in documents.inline_code(page):
        match = re.fullmatch(r"(?:--config\.)?([a-z_0-9]+(?:\.[a-z_0-9]+)+)(?:=.*)?", code)
        if match and match[1].partition(".")[0] in SECTIONS:
            check_key(match[1])


@pytest.mark.parametrize(
    "key",
    [
        "guard.bad_steps",
        "optimizer.average",
        "augment.mixup.tapp",
        "data.source.shuffle",
        "eval.options.retrieval.fold",
    ],
)
def test_a_key_that_is_not_there_is_found(key):
    with pytest.raises(AssertionError, match="no such key"):
        check_key(key)


def check_key(key):
    """Fails unless a dotted key is in the schema, or is an option of a plug-in."""
    kind, path = Experiment, ""
    names = key.split(".")
    for i, name in enumerate(names):
        path = f"{path}.{name}" if path else name
        fields = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        assert name in fields, f"{key}: no such key"
        kind = next((k for k in union(typing.get_type_hints(kind)[name]) if dataclasses.is_dataclass(k)), None)
        rest = names[i + 1 :]
        if path in PLUGINS or path in ("data.tokenizer", "data.preprocess", "data.train", "data.evaluation"):
            return check_option(path, key, rest)
        if not rest:
            return None
    return None


def union(hint):
    return typing.get_args(hint) if typing.get_origin(hint) not in (None, tuple, dict) else (hint,)


def check_option(path, key, rest):
    if path not in PLUGINS or not rest or rest == ["name"]:
        return
    folder, attribute = PLUGINS[path]
    names = plugins.names(folder)
    if path in ("augment", "data.transforms", "eval.options"):
        assert rest[0] in names, f"{key}: no such key"
        names, rest = [rest[0]], rest[1:]
    options = {
        option
        for name in names
        for option in inspect.signature(getattr(plugins.load(folder, name, path=path), attribute).__init__).parameters
    }
    assert not rest or rest[0] in options, f"{key}: no such key"


def test_every_shipped_config_is_documented():
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for config in sorted((ROOT / "configs").glob("*.py")):
        if "def get_config" in config.read_text(encoding="utf-8"):
            assert f"configs/{config.name}" in text, config.name


@pytest.mark.parametrize(
    ("folder", "guide"),
    [
        ("mmjax.augment", "augmentations.md"),
        ("mmjax.data.transforms", "transforms.md"),
        ("mmjax.data.sources", "data.md"),
        ("mmjax.evals", "evaluation.md"),
        ("mmjax.objectives", "objectives.md"),
        ("mmjax.generate.blocks", "generation.md"),
        ("mmjax.generate.backends", "generation.md"),
    ],
)
def test_every_plugin_is_in_its_guide(folder, guide):
    named = set(documents.inline_code(DOCS / guide))
    assert set(plugins.names(folder)) - {"auto"} <= named
