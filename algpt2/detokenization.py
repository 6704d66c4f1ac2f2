"""WikiText's tokenization undone: the spaces that Wikipedia's own text does not have."""

# ruff: noqa: RUF001
import re

JOINERS = {"@-@": "-", "@,@": ",", "@.@": "."}
CLOSING = frozenset(", . ; : ! ? ) ] } % ° ” 〉 ... …".split())
OPENING = frozenset("( [ { $ £ € ¥ ₹ “ ‘ 〈".split())
DOLLARS = frozenset(("US", "A", "C", "NZ", "HK"))
CONTRACTIONS = frozenset("s t re ve ll d m".split())
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
    return "\n".join(_line(line) for line in text.split("\n"))


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
        before = tokens[place - 1] if place else ""
        after = tokens[place + 1] if place + 1 < len(tokens) else ""
        left = token in CLOSING
        right = token in OPENING
        if token in JOINERS:
            left = right = True
            token = JOINERS[token]
        elif token in ('"', '""'):
            # Some copies of the files double the quotes, as CSV does.
            token = '"'
            left = token in open_quotes
            right = not left
            open_quotes ^= {token}
        elif token == "'":
            left, right = _apostrophe(before, after, open_quotes)
        elif token == "’":
            left, right = True, after in CONTRACTIONS
        elif token == "n't" or (token[0] == "'" and token[1:2].isalpha()):
            left = True
        elif token == "/":
            left = right = True
        elif token in (":", "–") and before[-1:].isdigit() and after[:1].isdigit():
            left = right = True
        elif token in ("#", "−"):
            right = after[:1].isdigit()
        elif token == "°" and after in ("C", "F"):
            left, right = False, True
        elif token == "$":
            left = before in DOLLARS
        parts.append(token if left or glued else f" {token}")
        glued = right
    return "".join(parts)


def _apostrophe(before, after, open_quotes):
    """Whether a single quote on its own clings to the word before it, and to the one after it."""
    if "'" in open_quotes:
        open_quotes.remove("'")
        return True, False
    if before.endswith("s"):
        return True, False
    if after[:1].isdigit():
        return False, True
    open_quotes.add("'")
    return False, True
