"""WikiText's tokenization undone."""

import re
from pathlib import Path

import pytest

from algpt2.data.wikitext import detokenize_wikitext

WIKITEXT = Path(__file__).parents[3] / "data" / "wikitext-2"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (" = Robert Boulter = \n", "= Robert Boulter =\n"),
        (" = = = Early life = = = \n", "=== Early life ===\n"),
        (" x = 2 = y \n", "x = 2 = y\n"),
        (" \n", "\n"),
        ("", ""),
        (" a two @-@ part arc of 1 @,@ 500 at 7 @.@ 5 % \n", "a two-part arc of 1,500 at 7.5%\n"),
        (' He said , " Craig , no ! " ; she ( 20 ) did n\'t . ', 'He said, "Craig, no!"; she (20) didn\'t.'),
        (" the \"\" first \"\" one 's , O 'Brien 're don 't \n", "the \"first\" one's, O'Brien're don't\n"),
        (" ships ' hulls of the ' 90s , ' quoted ' here \n", "ships' hulls of the '90s, 'quoted' here\n"),
        (" at 16 : 40 : US $ 3 million , £ 5 and $ 7 [ sic ] \n", "at 16:40: US$3 million, £5 and $7 [sic]\n"),
        (" 1939 – 1945 – a # 8 hit and / or 30 ° C , 45 ° \n", "1939–1945 – a #8 hit and/or 30 °C, 45°\n"),  # noqa: RUF001
        (" one . \n \n = two = \n", "one.\n\n= two =\n"),
    ],
)
def test_sentences(tokens, text):
    assert detokenize_wikitext(tokens) == text


@pytest.mark.slow
@pytest.mark.skipif(not WIKITEXT.is_dir(), reason="data/wikitext-2 is not there")
def test_unknown_words_do_not_disturb_the_rest():
    """wiki.test.raw is tokenized as wiki.test.tokens is, but has the words behind <unk>."""
    pairs = zip(*(open(WIKITEXT / f"wiki.test.{kind}", encoding="utf-8") for kind in ("tokens", "raw")), strict=True)
    texts = [(detokenize_wikitext(tokens), detokenize_wikitext(raw)) for tokens, raw in pairs if tokens.strip()]
    equal = sum(bool(re.fullmatch(re.escape(text).replace("<unk>", r"\S+"), raw)) for text, raw in texts)
    assert equal / len(texts) > 0.97
    assert not any(mark in raw for _, raw in texts for mark in (" @", " ,", " .\n", "( ", " )"))
