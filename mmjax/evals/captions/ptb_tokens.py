"""Captions as lists of tokens, by the rules of the Penn Treebank as the usual caption metrics apply them."""

from __future__ import annotations

import re

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that the metrics leave out."""

_REPLACED = str.maketrans({
    "’": "'", "‘": "`", "“": '"', "”": '"', "…": "...", "–": "--", "—": "--",
    "(": " -lrb- ", ")": " -rrb- ", "[": " -lsb- ", "]": " -rsb- ", "{": " -lcb- ", "}": " -rcb- ",
    "€": "$", "£": "#",
})  # fmt: skip

_TITLES = "mr|mrs|ms|dr|st|mt|ft|jr|sr|prof|gen|rep|sen|gov|col|capt|lt|sgt|rev|hon|inc|ltd|co|corp|bros|vs|etc|ph.d"
_TITLES += "|ave|blvd|rd|jan|feb|aug|sept?|oct|nov|dec|e.g|i.e|fig"
_WHOLE = r"(?:o|d|l)'(?=\w)[^\W\d_]{2,}|o'clock|ma'am|ne'er|cap'n|s'mores"  # an apostrophe that is part of a word
_SUFFIX = r"'(?:s|d|m|ll|re|ve)(?!\w)"

_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"<>]*[^\s"<>.,!?;:']     # addresses
    | [\w.+-]+@\w[\w-]*(?:\.\w+)+ | @\w+
    | -[lr][rsc]b- | </?\w+>
    | can(?=not\b) | (?<=can)not\b | gon(?=na\b) | (?<=gon)na\b | got(?=ta\b) | (?<=got)ta\b
    | wan(?=na\b) | (?<=wan)na\b | lem(?=me\b) | (?<=lem)me\b | gim(?=me\b) | (?<=gim)me\b
    | (?<!\w)'t(?=(?:is|was)\b)
    | (?<!\w)'(?:em|till?|cause|n'|\d\ds)(?!\w) | (?<=\w)'n'(?=\w) | y'(?=all\b) | ol'(?!\w)
    | {_SUFFIX} | n't(?!\w) | {_WHOLE}
    | (?:{_TITLES})\.(?!\w) | no\.(?=\s?\d)
    | (?:[^\W\d_]\.)+[^\W\d_]?(?!\w)                # U.S., J.
    | [.,]?\d+(?:[.,:/]\d+)*(?=[ap]m\b)
    | (?<!\w)[-+]?[.,]?\d+(?:[.,:/]\d+)+(?![\w-])
    | (?<=\w),\d+(?![\w,])
    | [^\W_](?:[\w/@&]|[.!?](?=[^\W\d_])|-(?=\w)|\.(?=\d))*?(?=n't(?!\w))        # could | n't
    | [^\W_](?:[\w@]|[.!?](?=[^\W\d_])|[/&](?=\w)|-(?=\w))*
    | (?<!\w)[-+]\d+
    | -+ | \.+ | [?!]+ | \'\'
    | \S
    """,
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """The tokens of a caption in lower case, without punctuation.

    Stanford's tokenizer, which the usual metrics call (PTBTokenizer of CoreNLP 3.4.1, in Java), has the same tokens for
    ordinary captions: contractions are split, hyphenated words and abbreviations stay whole, brackets are the tokens
    ``-lrb-`` and ``-rrb-``. It differs in smileys, symbols of currencies and fractions, and ranges of years.

    >>> tokenize("A man's dog isn't in the (red) car.")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'in', 'the', '-lrb-', 'red', '-rrb-', 'car']
    """
    text = caption.lower().translate(_REPLACED)
    return [token for token in _TOKEN.findall(text) if token not in PUNCTUATION and token.strip('-."')]
