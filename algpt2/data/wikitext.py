"""WikiText's tokenization undone: the spaces that Wikipedia's own text does not have."""

# ruff: noqa: RUF001
import re

JOINERS = {"@-@": "-", "@,@": ",", "@.@": "."}
CLOSING = frozenset(", . ; : ! ? ) ] } % ° ” 〉 ... …".split())
OPENING = frozenset("( [ { $ £ € ¥ ₹ “ ‘ 〈".split())
# Some copies of the files double the quotes, as CSV does.
QUOTES = ('"', '""')
DOLLARS = frozenset(("US", "A", "C", "NZ", "HK"))
CONTRACTIONS = frozenset("s t re ve ll d m".split())
SIGNS = CLOSING | OPENING | {*JOINERS, *QUOTES, "’", "–", "#", "−", "/", "n't"}
LINE = re.compile(r"[^\r\n]+")
YEARS = re.compile(r"\d\ds?")
HEADING = re.compile(r" *((?:= )+)(.*[^ =].*?)((?: =)+) *")


def detokenize_wikitext(text):
    """Text as people write it, from the files of WikiText-2 and WikiText-103.

    WikiText sets punctuation apart with spaces and writes `@-@`, `@,@` and `@.@` within words and numbers. What its
    tokenization has lost stays a guess: straight quotes open and close in turn within a line, and a slash or a colon
    between digits had no spaces.

    Args:
        text: str. Lines, with or without a line end at the end.

    Returns:
        str, with the same lines.

    References:
        Merity et al., 2016, Pointer Sentinel Mixture Models, section 4.3 (arXiv:1609.07843).

    Example:
        >>> detokenize_wikitext(" It did n't cost $ 1 @,@ 500 ( about ' 90s prices ) , he said : \\" no \\" . \\n")
        'It didn\\'t cost $1,500 (about \\'90s prices), he said: "no".\\n'
    """
    return LINE.sub(lambda line: _line(line[0]), text)


def _line(line):
    heading = HEADING.fullmatch(line)
    if heading:
        marks = heading[1].replace(" ", "")
        return f"{marks} {_words(heading[2])} {marks}"
    return _words(line)


def _words(line):
    tokens = line.split()
    parts, glued, open_quotes = [], True, set()
    for place, token in enumerate(tokens):
        left = right = False
        if token in SIGNS or token[0] == "'":
            before = tokens[place - 1] if place else ""
            after = tokens[place + 1] if place + 1 < len(tokens) else ""
            token, left, right = _sign(token, before, after, open_quotes)
        parts.append(token if left or glued else f" {token}")
        glued = right
    return "".join(parts)


def _sign(token, before, after, open_quotes):
    """A token that is no plain word, as people write it, and whether it clings to the token before and after it."""
    if token in JOINERS:
        return JOINERS[token], True, True
    if token in QUOTES:
        closes = '"' in open_quotes
        open_quotes ^= {'"'}
        return '"', closes, not closes
    if token == "'":
        return token, *_apostrophe(before, after, open_quotes)
    if token == "’":
        return token, True, after in CONTRACTIONS
    if token in (":", "–") and before[-1:].isdigit() and after[:1].isdigit():
        return token, True, True
    if token in ("#", "−"):
        return token, False, after[:1].isdigit()
    if token == "°" and after in ("C", "F"):
        return token, False, True
    if token == "$":
        return token, before in DOLLARS, True
    # What starts with an apostrophe is the end of a word: 's, 'Brien.
    return token, token in CLOSING or token[0] == "'" or token in ("/", "n't"), token in OPENING or token == "/"


def _apostrophe(before, after, open_quotes):
    """Whether a single quote on its own clings to the word before it, and to the one after it."""
    if "'" in open_quotes:
        open_quotes.remove("'")
        return True, False
    if before.endswith("s"):
        return True, False
    if YEARS.fullmatch(after):
        return False, True
    open_quotes.add("'")
    return False, True
