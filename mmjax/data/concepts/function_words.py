"""English words that say how a sentence is built, and are no concepts although dictionaries have nouns of that name."""

_LINES = [
    "a an the this that these those",
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself",
    "we us our ours ourselves they them their theirs themselves who whom whose which what",
    "someone something somebody anyone anything anybody everyone everything everybody nothing nobody none one ones",
    "and or but nor so yet if then than because though although while when where why how whether",
    "about above across after against ahead along alongside among amid around as at atop away before behind",
    "below beneath beside besides between beyond by despite down during except for from in inside into like near",
    "of off on onto out outside over past per since through throughout till to toward towards under underneath",
    "until up upon via with within without",
    "am is are was were be been being has have had having do does did done doing",
    "will would shall should may might must could cannot",
    "all another any both each either enough every few less many more most much neither no not other others",
    "own same several some such again also away ever here just never now only still there too very",
]

FUNCTION_WORDS = frozenset(word for line in _LINES for word in line.split())
"""In lower case. WordNet has nouns "a" (angstrom), "he" (helium), "in" (inch), and "was" is its plural of "wa"."""
