"""English prose of unpacked documentation packages: `python benchmarks/documentation_text.py UNPACKED OUTPUT`.

UNPACKED holds a directory for every package, as docs/data.md says. Text, HTML, Mallard, POD and the files of
dictionaries are read; of a package that has several of these, one kind. A paragraph is kept once, and only where
words that every English sentence has say that it is prose. It writes OUTPUT/train.txt and OUTPUT/valid.txt, a paragraph
on a line and an empty line after every file; what is held out are whole files, about one in fifty.
"""

import argparse
import gzip
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

# Of each package the first kind that takes up this many bytes is read: the others say the same in other markup.
KINDS = (("txt", "rst", "md", "pod"), ("html", "htm", "page"), ("dz",), ("",))
ENOUGH = 300_000
# Files above this size are dictionaries, of which none is held out.
LARGEST_HELD_OUT = 1_000_000
HELD_OUT_PART = 50

COMMON = frozenset(
    "the of and to is in that for with be are this it as by or on an if can not from which you will have was".split()
)
SKIPPED = {"script", "style", "pre", "head", "nav", "table", "code-block", "screen", "media", "footer", "info"}
PARAGRAPHS = {"p", "li", "dd", "dt", "div", "td", "blockquote", "section", "h1", "h2", "h3", "h4", "title", "item"}
# What markup leaves in a paragraph, and what stays of it: rst, POD and Markdown, then the sources that gcide names.
INLINE = (
    (re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`"), r"\1"),
    (re.compile(r"[BCEFILSX]<+\s*([^<>]*?)\s*>+"), r"\1"),
    (re.compile(r"`([^`<]*?)\s*(?:<[^`]*>)?`_+"), r"\1"),
    (re.compile(r"\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"``|`|\*\*|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|[{}\\|]"), ""),
    (re.compile(r"\[(1913 Webster|WordNet|PJC|Webster|Century)[^\]]*\]"), ""),
    (re.compile(r"\s+"), " "),
)


class Markup(HTMLParser):
    """Collects the paragraphs of HTML or Mallard in `found`."""

    def __init__(self):
        super().__init__()
        self.found, self.skipped = [""], 0

    def handle_starttag(self, tag, attributes):
        self.skipped += tag in SKIPPED
        if tag in PARAGRAPHS:
            self.found.append("")

    def handle_endtag(self, tag):
        self.skipped -= tag in SKIPPED and self.skipped > 0
        if tag in PARAGRAPHS:
            self.found.append("")

    def handle_data(self, data):
        if not self.skipped:
            self.found[-1] += data


def kind(path):
    """The ending of a file, without .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.removeprefix(".")


def paragraphs(text, kind):
    """The paragraphs of a file, in plain text."""
    if kind in ("html", "htm", "page"):
        parser = Markup()
        parser.feed(text)
        return parser.found
    if kind in ("txt", "rst", "md", "pod"):
        text = re.sub(r"^(\.\. |=|#|>|\s*[-*+:|] ?).*?", "", text, flags=re.M)
    return re.split(r"\n\s*\n|\n%\n", text)


def plain(paragraph):
    """A paragraph in one line, without the marks of reStructuredText, POD and Markdown."""
    for pattern, replacement in INLINE:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph.strip()


def is_prose(paragraph):
    """Whether a paragraph is English sentences rather than code, tables, names or another language."""
    words = paragraph.split()
    if len(words) < 12 or not sum(map(str.isalpha, paragraph)) > 0.72 * len(paragraph):
        return False
    return sum(word.lower() in COMMON for word in words) >= 0.2 * len(words)


def read(path):
    """The text of a file, unpacked; empty if it is none."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return "" if b"\0" in content[:4096] else content.decode("utf-8", errors="ignore")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    held_out, trained_on = [], []
    for package in sorted(arguments.unpacked.iterdir()):
        files = [path for path in sorted(package.rglob("*")) if path.is_file() and not path.is_symlink()]
        kinds = [[path for path in files if kind(path) in endings] for endings in KINDS]
        for path in next((some for some in kinds if sum(p.stat().st_size for p in some) >= ENOUGH), []):
            digest = hashlib.sha256(str(path.relative_to(arguments.unpacked)).encode()).digest()
            chosen = digest[0] % HELD_OUT_PART == 0 and path.stat().st_size < LARGEST_HELD_OUT
            (held_out if chosen else trained_on).append(path)
    arguments.output.mkdir(parents=True, exist_ok=True)
    # What is held out comes first, so that the training text cannot repeat it.
    seen = set()
    for name, files in (("valid.txt", held_out), ("train.txt", trained_on)):
        with (arguments.output / name).open("w", encoding="utf-8") as file:
            for path in files:
                kept = []
                for paragraph in filter(is_prose, map(plain, paragraphs(read(path), kind(path)))):
                    key = hashlib.sha256(re.sub(r"\W+", "", paragraph).lower().encode()).digest()
                    if key not in seen:
                        seen.add(key)
                        kept.append(paragraph)
                if kept:
                    file.write("\n".join(kept) + "\n\n")
        print(f"{name}: {(arguments.output / name).stat().st_size / 1e6:.1f} MB of {len(files):,} files")


if __name__ == "__main__":
    main()
