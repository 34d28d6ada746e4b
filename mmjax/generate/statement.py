"""From a question and its answer to a statement, by a few patterns of English."""

from __future__ import annotations

import re

_OWNER = r"(?:the|this|that|these|those|his|her|their|an?)"
_THINGS = "building|ceiling|clothing|crossing|evening|king|morning|opening|painting|railing|ring|string|wedding|wing"
_VERB = rf"(?!(?:{_THINGS})\b)(\w+ing)\b"
"""Such as wearing, but none of the things that end so."""
_PATTERNS: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), yes, no)
    for pattern, yes, no in (
        (r"(?:is|are) there (.+)\?", "there is {0}", "there is no {0}"),
        (r"what (\w+) (is|are) (the .+?)\?", "the {0} of {2} {1} {a}", ""),
        (r"how (?:large|big|tall|long|high|old) (is|are) (.+)\?", "{1} {0} {a}", ""),
        (r"what (is|are) (.+?) doing(.*)\?", "{1} {0} {a}{2}", ""),
        (rf"what (is|are) ({_OWNER}\b.+?) {_VERB}(.*)\?", "{1} {0} {2} {a}{3}", ""),
        (r"what (is|are) (.+)\?", "{a} {0} {1}", ""),
        (r"how many (.+?) (are|is) there(.*)\?", "there {1} {a} {0}{2}", ""),
        (r"how many (.+?) (are|is) (.+)\?", "{a} {0} {1} {2}", ""),
        (r"where (is|are) (.+)\?", "{1} {0} {a}", ""),
        (r"who (is|are) (.+)\?", "{a} {0} {1}", ""),
    )
)
_ARTICLE = re.compile(r"^(?:an?|any) ", re.IGNORECASE)


def statement(question: str, answer: str) -> str:
    """What is claimed by answering so; where no pattern fits, the question followed by the answer."""
    question, answer = " ".join(question.split()), " ".join(answer.split()).strip(" .")
    for pattern, yes, no in _PATTERNS:
        match = pattern.fullmatch(question)
        if (
            match is None
            or (no and answer.lower() not in ("yes", "no"))
            or (not no and answer.lower() in ("yes", "no"))
        ):
            continue
        pieces = [piece or "" for piece in match.groups()]
        if no and answer.lower() == "no":
            return no.format(_ARTICLE.sub("", pieces[0]))
        return yes.format(*pieces, a=answer)
    return f"{question} {answer}"


def kind_of(question: str) -> str:
    """The first three words, in lower case."""
    return " ".join(question.lower().split()[:3])
