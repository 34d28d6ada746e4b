from mmjax.core.printable import printable


def test_what_could_steer_a_terminal_or_reorder_text_is_written_out():
    assert printable("a\x1b[31m\x07\n\u202eb\x9b\ud800\u2028") == r"a\x1b[31m\x07\n\u202eb\x9b\ud800\u2028"
    assert printable("zwei\nZeilen\r", lines=True) == "zwei\nZeilen\\r"
    for text in ("naïve café 日本 ☃", "👩\u200d🚀", "می\u200cخواهم", r"C:\new"):
        assert printable(text) == text
