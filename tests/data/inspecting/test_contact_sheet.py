import numpy as np
import pytest
from PIL import ImageFont

from mmjax.core.config import ConfigError
from mmjax.data.inspecting import contact_sheet
from mmjax.data.inspecting.contact_sheet import Cell, draw, make_cells, truncate_text, wrap_text

FONT = ImageFont.load_default(size=14)


def batch():
    """Two images of two modalities, two captions and a negative each; the second is mixed, and lacks a caption."""
    return {
        "images": {
            "image": np.stack([np.full((8, 8, 3), v, np.uint8) for v in (10, 200)]),
            "depth": np.full((2, 8, 8, 1), 90, np.uint8),
        },
        "image_ids": np.array([[5, -1], [6, 9]]),
        "image_weight": np.array([[1.0, 0.0], [0.25, 0.75]]),
        "tokens": np.arange(6)[:, None],
        "text_ids": np.array([[5, -1], [5, -1], [5, -1], [6, 9], [-1, -1], [6, -1]]),
        "text_weight": np.array([[1, 0], [1, 0], [0, 0], [0.5, 0.5], [0, 0], [0, 0]]),
    }


def decode(ids):
    return [f"text {i}" for i in ids[:, 0]]


def test_cells_say_what_belongs_to_a_row():
    first, second = make_cells(batch(), decode)
    assert first.origin == "image 5" and second.origin == "image 6 (25%) + 9 (75%)"
    assert first.texts == [("text 0", True), ("text 1", True), ("text 2", False)]
    assert second.texts == [("text 3", True), ("text 5", False)]  # padding is nothing to be shown
    assert [p.shape for p in second.pictures] == [(8, 8, 3), (8, 8, 1)] and second.pictures[0][0, 0, 0] == 200


def test_rows_are_chosen_evenly_and_from_further_batches_where_one_is_too_small():
    class Batches:
        def __getitem__(self, step):
            made = batch()
            made["image_ids"] = made["image_ids"] + 10 * step
            return made

    def origins(count):
        return [int(cell.origin.split()[1]) for cell in contact_sheet.sample_cells(Batches(), decode, count=count)]

    assert origins(1) == [5] and origins(2) == [5, 6] and origins(5) == [5, 6, 15, 16, 25]
    four = {key: np.concatenate([value, value]) for key, value in batch().items() if key != "images"}
    four["images"] = {name: np.concatenate([x, x]) for name, x in batch()["images"].items()}
    four["image_ids"] = np.array([[1], [2], [3], [4]])
    four["image_weight"] = np.ones((4, 1))
    assert [cell.origin for cell in contact_sheet.sample_cells([four], decode, count=2)] == ["image 1", "image 3"]


def test_the_pictures_are_on_the_sheet_enlarged_by_whole_numbers():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[1, 2] = (250, 10, 20)
    sheet = np.asarray(draw([Cell([picture], "image 1", [("a text", True)])], title="title"))
    # 208 // 4 = 52 pixels for each.
    assert (sheet == (250, 10, 20)).all(-1).sum() == 52**2
    assert (sheet[:, :, 0] == 255).mean() > 0.5  # dark on light


def test_large_pictures_are_made_smaller_and_keep_their_shape():
    picture = np.full((300, 600, 3), (0, 0, 255), np.uint8)
    sheet = np.asarray(draw([Cell([picture], "", [])], title=""))
    rows, columns = np.nonzero((sheet == (0, 0, 255)).all(-1))
    assert np.ptp(columns) + 1 == 208 and np.ptp(rows) + 1 == 104


def test_false_captions_are_red_and_true_ones_are_not():
    picture = np.full((8, 8, 3), 255, np.uint8)

    def red(texts):
        sheet = np.asarray(draw([Cell([picture], "", texts)], title="")).astype(int)
        return int(((sheet[..., 0] > 150) & (sheet[..., 1] < 100)).sum())

    assert red([("some words", False)]) > 20 and red([("some words", True)]) == 0


@pytest.mark.parametrize("count", [1, 2, 5, 6, 13])
def test_everything_is_within_the_sheet(count):
    texts = [("word " * 30, True), ("x" * 200, True), ("", True), ("日本語 ünïcödé", False)]
    made = [Cell([np.full((9, 7, 3), 40 * (k % 5), np.uint8)], f"image {k}", texts[: k % 5]) for k in range(count)]
    sheet = np.asarray(draw(made, title="t " * 200, subtitle="s " * 800))
    edge = np.concatenate([sheet[:8].reshape(-1, 3), sheet[-8:].reshape(-1, 3), sheet[:, :8].reshape(-1, 3),
                           sheet[:, -8:].reshape(-1, 3)])  # fmt: skip
    assert (edge == 255).all()


def test_wrapping_keeps_every_word_in_lines_that_fit():
    text = "the quick brown fox jumps over the lazy dog " * 4
    lines = wrap_text(text, FONT, 150, max_lines=99)
    assert " ".join(lines).split() == text.split()
    assert all(FONT.getlength(line) <= 150 for line in lines) and len(lines) > 4


def test_what_is_cut_says_so():
    lines = wrap_text("word " * 100, FONT, 150, max_lines=3)
    assert len(lines) == 3 and lines[-1].endswith(" …") and FONT.getlength(lines[-1]) <= 150
    assert wrap_text("two words", FONT, 150, max_lines=3) == ["two words"]
    long = wrap_text("x" * 100, FONT, 150, max_lines=99)
    assert "".join(long) == "x" * 100 and all(FONT.getlength(line) <= 150 for line in long)
    assert truncate_text("short", FONT, 150) == "short"
    cut = truncate_text("a rather long title that goes on", FONT, 100)
    assert cut.endswith(" …") and FONT.getlength(cut) <= 100


def test_a_sheet_that_cannot_be_written(tmp_path):
    sheet = draw([Cell([np.zeros((8, 8, 3), np.uint8)], "", [])], title="")
    contact_sheet.save(sheet, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 100
    for name in ("a", "a.nothing", "nowhere/a.png"):
        with pytest.raises(ConfigError, match="--sheet="):
            contact_sheet.save(sheet, str(tmp_path / name))


LONG = ["x" * 200_000, "e" + "\u0301" * 20_000, "word " * 20_000]


@pytest.mark.parametrize("text", LONG, ids=["long", "marks", "many"])
def test_a_long_text_takes_no_longer_than_what_is_shown_of_it(text):
    calls = []

    class Counted:
        def getlength(self, part):
            calls.append(len(part))
            return FONT.getlength(part)

    lines = wrap_text(text, Counted(), 150, max_lines=9)
    assert len(lines) == 9 and lines[-1].endswith("…")
    assert FONT.getlength(truncate_text(text, Counted(), 150)) <= 150
    assert sum(calls) < 200_000


def test_a_font_of_the_machine_is_used_where_it_has_more_of_the_characters(monkeypatch, caplog):
    files = contact_sheet._font_files()
    assert contact_sheet.choose_fonts("plain", (14, 12))[1].getname() == FONT.getname() and not caplog.records
    if any("DejaVuSans" in file for file in files):
        font = contact_sheet.choose_fonts("Bär große я", (14, 12))[0]
        assert not contact_sheet._missing(font, "äßя") and not caplog.records
    monkeypatch.setattr(contact_sheet, "_font_files", lambda: [__file__])
    assert contact_sheet.choose_fonts("猫", (14,))[0].getname() == FONT.getname()
    assert "the sheet lacks 1 characters (猫)" in caplog.text


def test_marks_that_reorder_text_are_shown_as_escapes():
    font = ImageFont.load_default(size=14)
    assert contact_sheet.wrap_text("\u202eevil\x07\n dog", font, 500, max_lines=3) == [r"\u202eevil\x07 dog"]
