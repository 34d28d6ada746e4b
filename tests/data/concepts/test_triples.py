"""Facts of knowledge graphs as sentences with foils."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmjax import cli
from mmjax.core.config import ConfigError
from mmjax.data.concepts.fact_rows import FactMaker
from mmjax.data.concepts.triples import Graph, Triple, read_triples
from mmjax.generate.negatives.makers import CaptionedExample

FACTS = [
    Triple("dog", "/r/CapableOf", "bark"),
    Triple("dog", "/r/AtLocation", "kennel"),
    Triple("hot dog", "/r/AtLocation", "stadium"),
    Triple("boat", "/r/AtLocation", "harbor"),
    Triple("boat", "/r/AtLocation", "lake"),
    Triple("cat", "/r/CapableOf", "purr"),
]


def test_heads_are_whole_words_and_the_longest():
    graph = Graph(FACTS)
    assert graph.heads_in("Two dogs eat a hot dog on a Boat.") == ["dog", "hot dog", "boat"]
    assert graph.heads_in("a catalog") == [] and graph.heads_in("") == []
    units = Graph([Triple(head, "IsA", "unit") for head in ("a", "in", "wa", "he", "cat in a hat", "inch")])
    assert units.heads_in("He was an inch in a box") == ["inch"] and units.heads_in("A cat in a hat") == [
        "cat in a hat"
    ]


def test_foils_are_facts_that_the_graph_does_not_have():
    graph = Graph([*FACTS, *FACTS])
    assert len(graph) == len(FACTS)
    tails, relations = set(), set()
    for seed in range(30):
        random = np.random.default_rng(seed)
        tails.add(graph.false_tail(FACTS[3], random).tail)
        relations.add(graph.false_relation(FACTS[0], random).sentence)
    assert tails == {"kennel", "stadium"} and relations == {"dog is found at bark"}
    alone = Graph(FACTS[:1])
    assert alone.false_tail(FACTS[0], random) is None and alone.false_relation(FACTS[0], random) is None


def test_what_holds_of_a_more_general_head_is_no_foil():
    facts = [("dog", "IsA", "canine"), ("canine", "IsA", "animal"), ("animal", "CapableOf", "breathe"),
             ("animal", "IsA", "canine"), ("boat", "IsA", "vehicle"), ("boat", "CapableOf", "sink"),
             ("dog", "CapableOf", "bark"), ("boat", "Has", "breathe")]  # fmt: skip
    graph = Graph(Triple(*fact) for fact in facts)
    draws = [np.random.default_rng(seed) for seed in range(40)]
    assert {graph.false_tail(Triple("dog", "IsA", "canine"), random).tail for random in draws} == {"vehicle"}
    assert {graph.false_tail(Triple("dog", "CapableOf", "bark"), random).tail for random in draws} == {"sink"}
    relations = {graph.false_relation(Triple("dog", "Has", "breathe"), random).relation for random in draws}
    assert relations == {"IsA"}


def test_rows_are_units_of_what_a_caption_names():
    examples = [CaptionedExample(0, "a", ["a dog runs", "the dog"]), CaptionedExample(1, "b", ["a tree"])]
    rows = FactMaker(Graph(FACTS), seed=0).rows(examples)
    assert {row["key"] for row in rows} == {"a"} and {row["kind"] for row in rows} == {"entity", "relation"}
    assert {row["caption"] for row in rows} == {"dog can bark", "dog is found at kennel"}
    assert len({(row["kind"], row["caption"]) for row in rows}) == len(rows) == 4
    assert all(row["negative"] not in {fact.sentence for fact in FACTS} for row in rows)
    (only,) = FactMaker(Graph(FACTS), ("entity",), seed=0, limit=1).rows([CaptionedExample(0, "c", ["cat"])])
    assert only["caption"] == "cat can purr" and only["negative"] == "cat can bark"


def test_conceptnet_and_tables_are_read(tmp_path):
    lines = [
        "/a/1\t/r/CapableOf\t/c/en/guide_dog/n\t/c/en/help/v\t{}",
        "/a/2\t/r/CapableOf\t/c/fr/chien\t/c/en/help\t{}",
        "/a/3\t/r/Synonym\t/c/en/dog\t/c/en/hound\t{}",
    ]
    (tmp_path / "c.assertions").write_text("\n".join(lines) + "\n")
    assert list(read_triples(str(tmp_path / "c.assertions"), option="x")) == [
        Triple("guide dog", "/r/CapableOf", "help")
    ]
    (tmp_path / "t.csv").write_text("head,relation,tail\nDog,hasPart,Tail\n")
    (fact,) = read_triples(str(tmp_path / "t.csv"), option="x")
    assert fact.sentence == "dog has part tail"
    (tmp_path / "bad.assertions").write_text("one\ttwo\n")
    with pytest.raises(ConfigError, match=r"^x='.*bad.assertions': line 1 is not ConceptNet's"):
        list(read_triples(str(tmp_path / "bad.assertions"), option="x"))


def visualsem(folder, **changes):
    """VisualSem's files with four entities; ``changes`` replace whole files."""
    nodes = {
        "bn:1n": {"ms": "WN:EN:dog", "se": ["dog", "Canis_familiaris"], "ims": ["a1"]},
        "bn:2n": {"ms": "domestic_animal#n#1", "se": [], "ims": []},
        "bn:3n": {"ms": "WIKI:EN:Leash_(tool)", "se": [], "ims": []},
        "bn:4n": {"ms": None, "se": ["Kennel"], "ims": []},
    }
    tuples = {
        "bn:2n": [{"s": "bn:1n", "r": "is-a", "r_id": 0}, {"s": "bn:1n", "r": "related-to", "r_id": 1}],
        "bn:4n": [{"s": "bn:1n", "r": "AtLocation", "r_id": 2}],
        "bn:1n": [{"s": "bn:3n", "r": "used-for", "r_id": 3}, {"s": "bn:2n", "r": "gloss_related", "r_id": 4}],
    }
    glosses = [{"available_languages": ["en", "de"]}, {"bn:1n": {"en": ["A pet that barks."], "de": ["Ein Tier."]}}]
    files = {"nodes.v2.json": nodes, "tuples.v2.json": tuples, "gloss_files/nodes.glosses.json": glosses} | changes
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / "tuples.v2.json")


def test_visualsem_is_read_with_its_descriptions(tmp_path):
    path = visualsem(tmp_path)
    facts = list(read_triples(path, option="x"))
    assert facts == [
        Triple("dog", "IsA", "domestic animal"), Triple("dog", "AtLocation", "kennel"),
        Triple("leash", "UsedFor", "dog"), Triple("dog", "DefinedAs", "a pet that barks"),
    ]  # fmt: skip
    assert facts[0].sentence == "dog is a kind of domestic animal" and Graph(facts).heads_in("Dogs on a leash")
    assert list(read_triples(path, option="x", language="de"))[-1].tail == "ein tier"
    (tmp_path / "gloss_files" / "nodes.glosses.json").unlink()
    assert list(read_triples(path, option="x")) == facts[:3]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("nodes.v2.json", '{"bn:1n": ', r"^x='.*nodes\.v2\.json': is no JSON"),
        ("nodes.v2.json", "[]", r"nodes\.v2\.json': is no object, as in VisualSem's files"),
        ("nodes.v2.json", {"bn:1n": {"ms": "dog"}}, r"tuples\.v2\.json': 'bn:2n': 'bn:2n' is not in .*of one version"),
        ("tuples.v2.json", {"bn:1n": {"s": "bn:2n"}}, r"'bn:1n': is no list"),
        ("tuples.v2.json", {"bn:1n": [{"s": "bn:2n"}]}, r"'bn:1n': has no relation r"),
        ("gloss_files/nodes.glosses.json", [3], r"nodes\.glosses\.json': is no object"),
    ],
)
def test_damaged_files_of_visualsem_are_refused(tmp_path, file, content, message):
    with pytest.raises(ConfigError, match=message):
        list(read_triples(visualsem(tmp_path, **{file: content}), option="x"))
    (tmp_path / "nodes.v2.json").unlink()
    with pytest.raises(ConfigError, match=r"nodes\.v2\.json': cannot be read"):
        list(read_triples(str(tmp_path / "tuples.v2.json"), option="x"))


def test_the_command_writes_units_for_cs_clip(tmp_path, capsys):
    (tmp_path / "pairs.csv").write_text("filepath,title\na.jpg,a dog\nb.jpg,a boat\n")
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"x")
    facts = "".join(f"{fact.head},{fact.relation},{fact.tail}\n" for fact in FACTS)
    (tmp_path / "facts.csv").write_text("head,relation,tail\n" + facts)
    flags = ["data", "negatives", f"--path={tmp_path / 'pairs.csv'}", f"--output={tmp_path / 'n.parquet'}"]
    assert cli.main([*flags, "--method=triples", f"--triples={tmp_path / 'facts.csv'}"]) == 0
    rows = pq.read_table(tmp_path / "n.parquet").to_pylist()
    assert {row["caption"] for row in rows} > {"dog can bark", "boat is found at lake"}
    assert "entity:" in capsys.readouterr().out
    assert cli.main([*flags, "--method=triples"]) != 0
    assert "--triples is missing: --method=triples needs facts" in capsys.readouterr().err
    assert cli.main([*flags, "--method=rules", "--wordnet=x"]) != 0
    assert "--wordnet=x: --method=rules reads none" in capsys.readouterr().err
