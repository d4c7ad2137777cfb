"""The pages' pictures: each is there, is small, is shown and can be read by who does not see it."""

import re

from tests.docs.blocks import REPOSITORY, pages

IMAGES = REPOSITORY / "docs" / "images"
MAX_BYTES = 120_000
_SHOWN = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)]+\.png)\)")


def test_every_picture_is_there_is_small_and_is_described():
    shown = [(page, found) for page in pages() for found in _SHOWN.finditer(page.read_text())]
    for page, found in shown:
        picture = page.parent / found["path"]
        assert picture.is_file(), f"{page.name}: {found['path']} is missing; take it with `python docs/screenshots.py`"
        assert picture.stat().st_size <= MAX_BYTES, f"{picture.name} has {picture.stat().st_size:,} bytes, the limit is {MAX_BYTES:,}"
        assert len(found["alt"]) > 20, f"{page.name}: {found['path']} has no alternative text"
    assert {(page.parent / found["path"]).resolve() for page, found in shown} == set(IMAGES.glob("*.png"))
