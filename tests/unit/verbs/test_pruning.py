"""Outputs suit the readers that people have: of a day, a key or a column, only that is read. Judged by the bytes that DuckDB reads."""

import hashlib
import subprocess
import sys
from typing import Any

import pytest

ROWS = 70_000
READ = """
import re, sys
import duckdb

def bytes_read():
    with open("/proc/self/io") as io:
        return int(re.search(r"rchar: (\\d+)", io.read())[1])

connection = duckdb.connect(config={"threads": 1})
source = f"read_parquet('{sys.argv[1]}/*/*.parquet', hive_partitioning=true)"
connection.execute(f"select count(*) from {source}").fetchall()
for query in sys.argv[2:]:
    before = bytes_read()
    found = connection.execute(query.format(source=source)).fetchall()
    print(bytes_read() - before, found)
"""
QUERIES = {
    "all": "select sum(length(text)) from {source}",
    "a day": "select sum(length(text)) from {source} where day = 2",
    "a key": "select text from {source} where day = 2 and id = 69_999",
    "a column": "select count(*) from {source} where status = 'pending'",
}


@pytest.mark.skipif(sys.platform != "linux", reason="bytes read are counted by Linux")
def test_only_what_is_asked_for_is_read(lake: Any) -> None:
    for day in ("1", "2"):
        # Random, so that a value takes the room it takes with answers.
        lake.texts(*(hashlib.sha512(f"{day} {row}".encode()).hexdigest() for row in range(ROWS)), path=f"reviews/day={day}/part-0.parquet")
    job = lake.job(path="reviews", partition_column="day", columns="all")
    lake.publish(job, ["1", "2"])
    process = subprocess.run(
        [sys.executable, "-c", READ, job.targets[0].output, *QUERIES.values()], capture_output=True, text=True, check=True
    )
    told = [line.partition(" ") for line in process.stdout.splitlines()]
    read = {name: int(size) for name, (size, _, _) in zip(QUERIES, told, strict=True)}
    found = {name: rows for name, (_, _, rows) in zip(QUERIES, told, strict=True)}
    assert found == {
        "all": f"[({2 * ROWS * 128},)]",
        "a day": f"[({ROWS * 128},)]",
        "a key": f"[('{hashlib.sha512(b'2 69999').hexdigest()}',)]",
        "a column": f"[({2 * ROWS},)]",
    }
    assert read["a day"] < 0.6 * read["all"]
    assert read["a key"] < 0.25 * read["a day"]
    assert read["a column"] < 0.05 * read["all"]
