"""The generated pages are what the code says now; every error's message says what to do."""

import re
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import REPOSITORY, pages

sys.path.insert(0, str(REPOSITORY / "docs"))
from generate import SOURCES, generate
from messages import find_messages

LINK = re.compile(r"\]\((?P<target>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


@pytest.mark.parametrize("name", ["reference.md", "api.md", "errors.md"])
def test_a_generated_page_is_current(name: str) -> None:
    """Otherwise: make docs-reference."""
    assert (REPOSITORY / "docs" / name).read_text() == generate()[name], "stale: run `make docs-reference`"


def test_every_error_says_what_to_do() -> None:
    """What failed and the consequence are not enough: the last sentences are the next step."""
    silent = {f"{one.where}: {one.text}" for one in find_messages(SOURCES, REPOSITORY) if not one.remedy}
    assert silent == set()


def test_every_link_leads_somewhere() -> None:
    """Pages and headings that are linked exist."""
    broken = []
    for page in pages():
        for found in LINK.finditer(page.read_text()):
            target = found["target"]
            if "://" in target:
                continue
            path = (page.parent / target) if target else page
            if not path.exists() or (found["anchor"] and found["anchor"] not in _anchors(path)):
                broken.append(f"{page.name}: {found.group()}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
