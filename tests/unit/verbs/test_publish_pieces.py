"""However the rows are cut into files, pieces, buckets and windows, the output is one and in their order."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.storage import gather
from claude_batch_dagster.verbs import publish, source_rows


def test_many_rows_over_many_pieces_keep_their_order(lake: Any) -> None:
    count = 33_000
    lake.texts(*(f"{i % 7}" if i % 3 else None for i in range(count)))
    lake.finish(lake.job())
    [output] = lake.publish(lake.job()).outputs
    table = lake.read()
    assert table["id"].to_pylist() == list(range(count))
    assert table["summary"].to_pylist() == [f"{i % 7}" if i % 3 else None for i in range(count)]
    assert sum(cost or 0 for cost in table["cost_usd"].to_pylist()) == pytest.approx(7e-6)
    assert (output.written.rows["succeeded"], output.written.rows["skipped"]) == (22_000, 11_000)
    file = pq.read_metadata(lake.folder / "out" / "summaries" / "part-0.parquet")
    groups = [file.row_group(group) for group in range(file.num_row_groups)]
    # Readers pass over row groups by the key's least and greatest value.
    assert [(group.num_rows, group.column(0).statistics.min, group.column(0).statistics.max) for group in groups] == [
        (32_768, 0, 32_767),
        (232, 32_768, 32_999),
    ]


@pytest.mark.parametrize("waiting_bytes", [0, 1 << 20])
def test_pieces_windows_and_files_of_any_size_give_one_output(lake: Any, monkeypatch: pytest.MonkeyPatch, waiting_bytes: int) -> None:
    texts = [f"{i % 19}" if i % 5 else None for i in range(90)]
    for at, (start, stop) in enumerate([(0, 1), (1, 40), (40, 40), (40, 90)]):
        ids = pa.array([str(i % 7) for i in range(start, stop)], pa.string()).dictionary_encode()
        column = pa.array(texts[start:stop], pa.string())
        lake.write({"id": pa.array(range(start, stop), pa.int64()), "text": column, "tag": ids}, f"day=1/{at}.parquet", row_group_size=9)
    job = lake.job(path="", partition_column="day", columns="all")
    lake.finish(job)
    lake.publish(job, ["1"])
    whole = lake.read(path="day=1/part-0.parquet")
    monkeypatch.setattr(gather, "BUCKET_ROWS", 4)
    monkeypatch.setattr(publish, "WINDOW_BUCKETS", 3)
    monkeypatch.setattr(source_rows, "PIECE_ROWS", 5)
    monkeypatch.setattr(gather, "WAITING_BYTES", waiting_bytes)
    [output] = lake.publish(job, ["1"]).outputs
    table = lake.read(path="day=1/part-0.parquet")
    assert table["id"].to_pylist() == list(range(90))
    assert table["tag"].to_pylist() == [str(i % 7) for i in range(90)]
    assert table["summary"].to_pylist() == texts
    assert table.to_pylist() == whole.to_pylist()
    assert output.written.answers == 19
