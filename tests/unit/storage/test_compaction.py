import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.fault_points import VARIABLE
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.compaction import LIMITS, Limits, forget_lost_responses, maintain_responses
from claude_batch_dagster.storage.index import read_newest
from claude_batch_dagster.storage.keys import pack_keys
from claude_batch_dagster.storage.responses import ROW_GROUP_ROWS, responses_path
from claude_batch_dagster.storage.store import Store
from tests.unit.storage.responses_of import ALWAYS, LONG_AGO, NEVER_JOINED, NOON, answer, key, write

FOLDER = "index/simulator/t"
REPOSITORY = Path(__file__).parents[3]
# What is due, in a process of its own: it says when it is there, and ends with whether it wrote an index.
MAINTAINER = """
import sys
from datetime import datetime
from claude_batch_dagster.storage.compaction import maintain_responses
from claude_batch_dagster.storage.store import Store
from tests.unit.storage.responses_of import ALWAYS
print(maintain_responses(Store(sys.argv[1]), "simulator", "t", now=datetime.fromisoformat(sys.argv[2]), limits=ALWAYS))
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path))
    for number in range(4):
        write(store, f"b{number}", [answer(3 * number + i) for i in range(3)], minutes=9 - number)
    return store


def maintain(store: Store, *, days: float = 0, limits: Limits = ALWAYS) -> bool:
    return maintain_responses(store, "simulator", "t", now=NOON + timedelta(days=days), limits=limits)


def names(store: Store, folder: str = "responses") -> list[str]:
    return [path.rpartition("/")[2] for path in store.list(folder)]


def check_answers(store: Store, count: int = 12) -> None:
    answers = Answers(store, "simulator", "t")
    places = answers.find(pack_keys([key(i) for i in range(count + 1)]))
    assert places[count] == -1
    assert answers.fetch(places[:count])["answer"].to_pylist() == [str(i) for i in range(count)]
    assert len(answers) == count
    assert answers.mean_output_tokens == sum(range(count)) / count


def start(store: Store, traps: str, days: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAINTAINER, store.uri, (NOON + timedelta(days=days)).isoformat()],
        env={**os.environ, VARIABLE: traps},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_small_files_become_one_whose_rows_stay_in_the_order_of_their_answers(store: Store) -> None:
    assert maintain(store)
    (name,) = [name for name in names(store) if name.startswith("compacted-")]
    rows = pq.read_table(f"{store.folder}/responses/simulator/t/{name}")
    assert rows["batch_id"].to_pylist() == [f"b{number}" for number in (3, 2, 1, 0) for _ in range(3)]
    assert rows["answer"].to_pylist() == [str(3 * number + i) for number in (3, 2, 1, 0) for i in range(3)]
    check_answers(store)


def test_a_second_look_finds_nothing_to_do(store: Store) -> None:
    assert maintain(store)
    before = store.list_versions("")
    assert not maintain(store)
    assert store.list_versions("") == before


@pytest.mark.parametrize(
    ("limits", "due"),
    [
        (LIMITS, False),
        (Limits(fresh_files=3), True),
        (Limits(fresh_files=4), False),
        (Limits(fresh_rows=11), True),
        (Limits(fresh_rows=12), False),
    ],
)
def test_an_index_is_due_by_rows_or_by_files(store: Store, limits: Limits, due: bool) -> None:
    assert maintain(store, limits=limits) == due


def test_a_large_index_waits_for_a_share_of_new_rows(store: Store) -> None:
    maintain(store, limits=NEVER_JOINED)
    limits = Limits(fresh_rows=0, fresh_share=0.1)
    write(store, "b4", [answer(12)])
    assert not maintain(store, limits=limits)
    write(store, "b5", [answer(13)])
    assert maintain(store, limits=limits)
    check_answers(store, 14)


def test_files_that_are_not_small_stay_and_compacted_ones_are_of_a_useful_size(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    limits = Limits(fresh_rows=0, fresh_files=0, small_rows=5, compacted_rows=12, compacted_files=100)
    lengths = [4, 5, 3, 4, 2, 4, 4, 1, 9, 3, 3]
    number = 0
    for at, rows in enumerate(lengths):
        write(store, f"b{at:02}", [answer(number + i) for i in range(rows)], minutes=at)
        number += rows
    assert maintain(store, limits=limits)
    check_answers(store, number)
    record = read_newest(store, FOLDER).record
    assert record is not None
    sizes = sorted(file.rows for file in record.files)
    assert sizes == [5, 6, 9, 11, 11]
    maintain(store, days=2, limits=limits)
    assert len(names(store)) == 5
    check_answers(store, number)


def test_compacted_files_have_full_row_groups_and_can_be_compacted_again(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    number = 0
    for at in range(4):
        write(store, f"b{at}", [answer(number + i) for i in range(9_000)], minutes=at)
        number += 9_000
        if at:
            maintain(store, days=3 * at)
            maintain(store, days=3 * at + 2)
            check_answers(store, number)
    (name,) = names(store)
    file = pq.ParquetFile(f"{store.folder}/responses/simulator/t/{name}")
    groups = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
    assert groups == [*[ROW_GROUP_ROWS] * (36_000 // ROW_GROUP_ROWS), 36_000 % ROW_GROUP_ROWS]
    assert file.read(["answer"])["answer"].to_pylist() == [str(i) for i in range(36_000)]


def test_what_was_replaced_is_removed_two_days_after_the_index_that_replaced_it(store: Store) -> None:
    maintain(store)
    there = names(store)
    assert len(there) == 5
    maintain(store, days=1.99)
    assert names(store) == there
    write(store, "b4", [answer(12)])
    maintain(store, days=1.995)
    maintain(store, days=2)
    assert [name for name in names(store) if name.startswith("b")] == ["b4.parquet"]
    maintain(store, days=3.995)
    assert [name for name in names(store) if name.startswith("b")] == []
    check_answers(store, 13)


def test_older_generations_are_removed_two_days_after_the_next_and_the_newest_never(store: Store) -> None:
    for day in range(5):
        write(store, f"c{day}", [answer(12 + day)])
        assert maintain(store, days=day, limits=NEVER_JOINED)
    assert [name for name in names(store, FOLDER) if name.endswith(".json")] == [f"{number:08}.json" for number in (3, 4, 5)]
    assert len(names(store, FOLDER)) == 6
    maintain(store, days=100)
    assert [name for name in names(store, FOLDER) if name.endswith(".json")] == ["00000005.json"]
    assert len(names(store, FOLDER)) == 2
    check_answers(store, 17)


def test_columns_that_no_record_names_are_removed(store: Store) -> None:
    maintain(store)
    store.put(f"{FOLDER}/00000001-01a207de-0000-7000-8000-000000000000.keys", b"loser")
    store.put(f"{FOLDER}/00000002-01a207de-0000-7000-8000-000000000000.keys", b"not named yet")
    maintain(store)
    assert len([name for name in names(store, FOLDER) if name.endswith(".keys")]) == 2
    assert names(store, FOLDER)[-1].startswith("00000002-")


POINTS = [
    f"{point}@{nth}"
    for point, passes in (
        ("list:index.before", 2),
        ("list:responses.after", 1),
        ("put:responses.before", 1),
        ("put:responses.after", 1),
        ("put:index.before", 2),
        ("put:index.after", 2),
    )
    for nth in range(1, passes + 1)
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_what_is_there_is_right_and_the_next_one_finishes(store: Store, point: str) -> None:
    name, _, nth = point.partition("@")
    process = start(store, f"{name}=kill@{nth}")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    check_answers(store)
    write(store, "b9", [answer(12)])
    check_answers(store, 13)
    maintain(store, days=1)
    check_answers(store, 13)
    for days in (3, 6, 9):
        maintain(store, days=days)
        check_answers(store, 13)
    assert [name for name in names(store) if name.startswith("b")] == []
    assert len(names(store, FOLDER)) == 2


@pytest.mark.parametrize("point", POINTS)
def test_two_at_once_lose_nothing(store: Store, point: str) -> None:
    """One is suspended anywhere while another one does the same, and more is answered; then it goes on."""
    name, _, nth = point.partition("@")
    process = start(store, f"{name}=stop@{nth}")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    try:
        write(store, "b9", [answer(12)])
        maintain(store)
        check_answers(store, 13)
        record = store.get(f"{FOLDER}/00000001.json")
    finally:
        process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.strip() == ("True" if point == "put:index.after@2" else "False")
    assert store.get(f"{FOLDER}/00000001.json") == record
    check_answers(store, 13)
    for days in (1, 3, 6, 9):
        maintain(store, days=days)
        check_answers(store, 13)
    assert len(names(store, FOLDER)) == 2


def test_one_that_slept_for_days_takes_nothing_away(store: Store) -> None:
    """It wakes before its record is written: the number that it wants is long gone, and newer ones count."""
    process = start(store, "put:index.before=stop@2")
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    try:
        for days in range(1, 8):
            write(store, f"c{days}", [answer(11 + days)], minutes=days)
            maintain(store, days=days)
    finally:
        process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    check_answers(store, 19)
    for days in (8, 11, 14):
        maintain(store, days=days)
        check_answers(store, 19)


def test_a_file_that_changes_while_it_is_joined_is_left_as_it_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Store.version

    def write_meanwhile(self: Store, path: str) -> str:
        if path.endswith("b2.parquet"):
            write(self, "b2", [answer(i) for i in (6, 7, 8, 12)], minutes=7)
        return versions(self, path)

    monkeypatch.setattr(Store, "version", write_meanwhile)
    assert maintain(store)
    monkeypatch.undo()
    check_answers(store, 13)
    assert [name for name in names(store) if name.startswith("compacted-")] == []


def test_a_reader_that_opened_before_reads_on_for_two_days(store: Store) -> None:
    maintain(store, limits=NEVER_JOINED)
    answers = Answers(store, "simulator", "t")
    maintain(store, days=1, limits=Limits(fresh_files=0, fresh_rows=0, compacted_files=1))
    write(store, "b9", [answer(12)])
    maintain(store, days=1)
    maintain(store, days=1 + LONG_AGO.days - 0.01)
    places = answers.find(pack_keys([key(i) for i in range(12)]))
    assert answers.fetch(places)["answer"].to_pylist() == [str(i) for i in range(12)]


def test_generations_count_up_by_one(store: Store) -> None:
    for number in range(3):
        write(store, f"c{number}", [answer(12 + number)])
        maintain(store, limits=NEVER_JOINED)
    generations = [int(name[:8]) for name in names(store, FOLDER) if name.endswith(".json")]
    assert all(later == earlier + 1 for earlier, later in pairwise(generations))
    assert generations[-1] == 3


def test_a_compacted_file_without_its_index_is_the_last_copy_of_files_that_got_lost(store: Store) -> None:
    """Killed before its index, it repeats what others hold; with those gone it repeats nothing, and stays."""
    maintain(store, limits=NEVER_JOINED)
    write(store, "b4", [answer(12)])
    killed = start(store, "put:index.before=kill@2")
    killed.communicate(timeout=30)
    assert killed.returncode < 0
    (compacted,) = [name for name in names(store) if name.startswith("compacted-")]
    for number in range(4):
        store.delete(responses_path("simulator", "t", f"b{number}"))

    assert len(forget_lost_responses(store, "simulator", "t")) == 4

    for days in (0, 4):
        maintain(store, days=days)
        assert compacted in names(store)
        answers = Answers(store, "simulator", "t")
        found = answers.fetch(answers.find(pack_keys([key(i) for i in range(13)])))
        assert found["answer"].to_pylist() == [str(i) for i in range(13)]


@pytest.mark.parametrize("days", [0, 3])
def test_a_file_that_another_client_removes_meanwhile_is_no_error(store: Store, monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """While files are joined, or removed long after."""
    if days:
        maintain(store)
    versions = Store.version

    def remove_meanwhile(self: Store, path: str) -> str:
        if path.endswith("b2.parquet"):
            self.delete(path)
        return versions(self, path)

    monkeypatch.setattr(Store, "version", remove_meanwhile)
    maintain(store, days=days)
    monkeypatch.undo()
    assert "b2.parquet" not in names(store)
    if days:
        check_answers(store)


def test_a_copy_of_the_root_joins_no_compacted_file_a_second_time(store: Store, tmp_path: Path) -> None:
    """A copy's files have other versions. What was joined and not removed yet is read again, a compacted file is known by its name."""
    maintain(store)
    for number in range(3):
        copied = tmp_path.with_name(f"{tmp_path.name}-{number}")
        shutil.copytree(store.uri, copied, copy_function=shutil.copyfile)
        store = Store(str(copied))
        maintain(store)
        check_answers(store)
    compacted = [path for path in store.list("responses") if "compacted-" in path]
    # 12 more with each copy, not twice as many.
    assert max(pq.read_metadata(store.open(path)).num_rows for path in compacted) == 48
