"""Which files a path with globs or `{partition}` means."""

from pathlib import Path
from typing import Any

import pytest

from claude_batch_dagster.core.errors import SourceError, UsageError
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.templates import read_template


def listed(folder: Path, pattern: str, only: Any = None, key_format: str | None = None) -> dict[str, str | None]:
    template = read_template(f"{folder}/{pattern}", key_format)
    assert template is not None
    store = Store(template.folder)
    return {f"{template.folder}/{path}".removeprefix(f"{folder}/"): key for path, _, key in template.list(store, only)}


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")


def test_a_date_in_the_path_becomes_the_key_that_dagster_would_give_it(tmp_path: Path) -> None:
    touch(tmp_path, "r/2026/11/01/a.parquet", "r/2026/11/02/x/b.pq", "r/2026/13/01/no.parquet", "r/2026/11/x/no.parquet", "r/notes.txt")
    assert listed(tmp_path, "r/{partition:%Y/%m/%d}") == {"r/2026/11/01/a.parquet": "2026-11-01", "r/2026/11/02/x/b.pq": "2026-11-02"}
    assert listed(tmp_path, "r/{partition:%Y/%m/%d}/*.parquet") == {"r/2026/11/01/a.parquet": "2026-11-01"}
    assert listed(tmp_path, "r/{partition:%Y/%m/%d}", key_format="%d.%m.%Y")["r/2026/11/01/a.parquet"] == "01.11.2026"


def test_hours_months_and_dates_in_several_places_are_one_key(tmp_path: Path) -> None:
    touch(tmp_path, "h/20261101/13.parquet", "m/2026-11.parquet", "d/2026/11/2026-11-05.parquet", "d/2026/10/2026-11-05.parquet")
    assert listed(tmp_path, "h/{partition:%Y%m%d}/{partition:%H}.parquet") == {"h/20261101/13.parquet": "2026-11-01-13:00"}
    assert listed(tmp_path, "m/{partition:%Y-%m}.parquet") == {"m/2026-11.parquet": "2026-11-01"}
    both = "d/{partition:%Y}/{partition:%m}/{partition:%Y-%m-%d}.parquet"
    assert listed(tmp_path, both) == {"d/2026/11/2026-11-05.parquet": "2026-11-05"}, "a date that contradicts its folder is no match"


def test_text_is_the_key_as_it_stands_within_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, "drops/a b.parquet", "drops/x/y.parquet", "drops/_tmp.parquet", "drops/.c.parquet")
    assert listed(tmp_path, "drops/{partition}.parquet") == {"drops/a b.parquet": "a b"}
    assert listed(tmp_path, "{partition}/**/*.parquet", ["drops"]) == {"drops/a b.parquet": "drops", "drops/x/y.parquet": "drops"}
    touch(tmp_path, "twice/a/a.parquet", "twice/a/b.parquet")
    assert listed(tmp_path, "twice/{partition}/{partition}.parquet") == {"twice/a/a.parquet": "a"}


def test_globs_stay_within_a_folder_and_two_stars_do_not(tmp_path: Path) -> None:
    touch(tmp_path, "a1.parquet", "a2.parquet", "b.parquet", "x/a3.parquet", "x/y/a4.parquet", "a(1).parquet", "_h/a5.parquet")
    assert list(listed(tmp_path, "a?.parquet")) == ["a1.parquet", "a2.parquet"]
    assert list(listed(tmp_path, "a[!1].parquet")) == ["a2.parquet"]
    assert list(listed(tmp_path, "*.parquet")) == ["a(1).parquet", "a1.parquet", "a2.parquet", "b.parquet"]
    assert list(listed(tmp_path, "**/a?.parquet")) == ["_h/a5.parquet", "a1.parquet", "a2.parquet", "x/a3.parquet", "x/y/a4.parquet"]
    assert list(listed(tmp_path, "x/*")) == ["x/a3.parquet", "x/y/a4.parquet"], "a folder that matches is read whole"


def test_a_path_that_exists_as_it_is_written_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].parquet", "{partition}.parquet")
    assert read_template(f"{tmp_path}/a[1].parquet") is None
    assert read_template(f"{tmp_path}/{{partition}}.parquet") is None
    assert read_template(f"{tmp_path}/a[2].parquet") is not None
    assert read_template("s3://lake/reviews/part.parquet") is None


def test_only_the_folders_of_wanted_partitions_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"r/2026/{month:02}/{day:02}/a.parquet" for month in range(1, 13) for day in range(1, 5)))
    seen: list[str] = []
    plain = Store.list_versions
    monkeypatch.setattr(Store, "list_versions", lambda self, prefix: seen.append(prefix) or plain(self, prefix))
    pattern = "r/{partition:%Y/%m/%d}/*.parquet"
    assert list(listed(tmp_path, pattern, ["2026-03-02", "2026-07-01"]).values()) == ["2026-03-02", "2026-07-01"]
    assert seen == ["2026/03/02", "2026/07/01"]
    seen.clear()
    many = [f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in range(1, 4)]
    assert list(listed(tmp_path, pattern, many).values()) == many
    assert seen == ["2026"]
    seen.clear()
    listed(tmp_path, pattern)
    assert seen == [""]


def test_a_key_that_is_no_date_is_refused_with_the_form(tmp_path: Path) -> None:
    template = read_template(f"{tmp_path}/{{partition:%Y/%m/%d}}.parquet")
    assert template is not None
    with pytest.raises(SourceError, match=r"'eu' is no date in the form %Y-%m-%d"):
        template.render("eu")
    text = read_template(f"{tmp_path}/{{partition}}.parquet")
    assert text is not None
    with pytest.raises(SourceError, match="without '/'"):
        text.render("a/b")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("r/{partition:%Q}", "has %Q.*%Y, %y, %m"),
        ("r/{partition}/{partition:%Y}", "with a date and without one"),
        ("r/{partition:day}", "with a date and without one"),
        ("s3://{partition}/x", "in its bucket"),
    ],
)
def test_a_template_that_can_mean_nothing_is_refused(path: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_template(path)
