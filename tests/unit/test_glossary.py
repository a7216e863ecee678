"""`docs/glossary.md` tells each word once, in order, in one sentence, and where it lives."""

import re

from tests.support.server import ROOT

PAGE = ROOT / "docs" / "glossary.md"


def rows() -> list[list[str]]:
    """Word, meaning and file of each entry."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]
    assert len(found) > 60
    return found


def test_words_are_in_alphabetical_order_and_there_once() -> None:
    words = [row[0].lower() for row in rows()]
    assert words == sorted(set(words))


def test_every_word_has_one_sentence() -> None:
    odd = [row[0] for row in rows() if not re.fullmatch(r"[A-Z][^.]*(?:\.[a-z][^.]*)*\.", row[1])]
    assert odd == []


def test_every_word_lives_in_a_file_that_exists() -> None:
    missing = [row for row in rows() if len(row) != 3 or not (ROOT / row[2].strip("`")).is_file()]
    assert missing == []
