"""A job whose answers could not be kept is refused before it is planned, by either face: `run_job` itself looks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from claude_batch_dagster.core.errors import OutputError, RootError
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.run import run_job
from claude_batch_dagster.verbs.writable import check_writable

NOWHERE = Connection(address="127.0.0.1:9")


def test_nothing_is_left_behind_where_all_can_be_written(lake: Any) -> None:
    lake.texts("a")
    before = sorted(lake.folder.rglob("*"))
    check_writable(lake.job())
    assert sorted(lake.folder.rglob("*")) == before


def test_clients_that_begin_at_the_same_moment_do_not_refuse_each_other(lake: Any) -> None:
    lake.texts("a")
    jobs = [lake.job(root=str(lake.folder / f"new-{number}" / "root")) for number in range(100)]
    with ThreadPoolExecutor(8) as clients:
        for job in jobs:
            list(clients.map(check_writable, [job] * 8))


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_planned(lake: Any) -> None:
    lake.texts("a")
    job = lake.job()
    (lake.folder / "file").write_text("")
    job = replace(job, targets=(replace(job.targets[0], output=str(lake.folder / "file" / "out")),))
    with pytest.raises(OutputError, match=r"The output .*/file/out cannot be written: Not a directory\. Nothing was sent\. Choose another"):
        run_job(job, NOWHERE)
    assert not (lake.folder / "root").exists()


def test_a_root_that_cannot_be_written_is_refused_before_anything_is_planned(lake: Any) -> None:
    lake.texts("a")
    (lake.folder / "file").write_text("")
    job = lake.job(root=str(lake.folder / "file" / "root"))
    with pytest.raises(RootError, match=r"The root .*/file/root cannot be written: Not a directory\. Nothing was sent\. Choose another"):
        run_job(job, NOWHERE)
