"""Loading what was published, by annotation."""

import sys
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.resources.io_manager import ClaudeBatchIOManager, count_statuses, open_output, outputs_folder
from claude_batch_dagster.resources.loading import choose_conversion

DAYS = dg.StaticPartitionsDefinition(["2026-11-01", "2026-11-02", "2026-11-03"])
KEY = dg.AssetKey("summaries")


def publish(folder: Path, days: tuple[str | None, ...]) -> None:
    for day in days:
        file = folder / (f"day={day}" if day else "") / "part-0.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"id": [1, 2], "summary": [f"of {day}", None], "status": ["succeeded", "errored"]}), file)
    (folder / "_claude_batch.json").write_text("{}")


def load(output: Path, annotation: Any, *, partitions: dg.PartitionsDefinition | None = None, metadata=None, **run):
    """Load the asset `summaries` in a downstream asset that is partitioned alike; return what it got."""
    got = []
    upstream = dg.AssetSpec("summaries", partitions_def=partitions).with_io_manager_key("claude_batch_io_manager")

    manager = ClaudeBatchIOManager(root=str(output), output=str(output))

    @dg.asset(
        partitions_def=partitions, ins={"summaries": dg.AssetIn(metadata=metadata, dagster_type=dg.PythonObjectDagsterType(annotation))}
    )
    def reader(summaries) -> None:
        got.append(summaries)

    dg.materialize([upstream, reader], selection=[reader], resources={"claude_batch_io_manager": manager}, **run)
    return got[0]


def test_an_output_is_loaded_as_a_frame_a_table_or_a_dataset(tmp_path):
    publish(tmp_path / "summaries", (None,))
    assert load(tmp_path, pd.DataFrame)["summary"].iloc[0] == "of None"
    assert load(tmp_path, pa.Table).column_names == ["id", "summary", "status"]
    assert load(tmp_path, ds.Dataset).count_rows() == 2


def test_one_partition_is_loaded_with_its_key_as_a_column(tmp_path):
    publish(tmp_path / "summaries", ("2026-11-01", "2026-11-02"))
    table = load(tmp_path, pa.Table, partitions=DAYS, partition_key="2026-11-02")
    assert table["day"].to_pylist() == ["2026-11-02"] * 2
    assert table.schema.field("day").type == pa.string()


def test_a_range_of_partitions_is_one_table(tmp_path):
    publish(tmp_path / "summaries", ("2026-11-01", "2026-11-02", "2026-11-03"))
    tags = {"dagster/asset_partition_range_start": "2026-11-01", "dagster/asset_partition_range_end": "2026-11-02"}
    assert load(tmp_path, pd.DataFrame, partitions=DAYS, tags=tags)["day"].tolist() == ["2026-11-01"] * 2 + ["2026-11-02"] * 2


def test_a_missing_partition_is_named_unless_missing_ones_are_allowed(tmp_path):
    publish(tmp_path / "summaries", ("2026-11-01",))
    tags = {"dagster/asset_partition_range_start": "2026-11-01", "dagster/asset_partition_range_end": "2026-11-03"}
    with pytest.raises(OutputError) as error:
        load(tmp_path, pd.DataFrame, partitions=DAYS, tags=tags)
    assert "no published rows for 2 of 3 partitions: 2026-11-02, 2026-11-03" in str(error.value)
    allowed = load(tmp_path, pd.DataFrame, partitions=DAYS, tags=tags, metadata={"allow_missing_partitions": True})
    assert len(allowed) == 2


def test_nothing_published_says_so(tmp_path):
    with pytest.raises(OutputError, match=r"summaries has no published rows.*Materialize it first"):
        open_output(str(tmp_path / "summaries"), KEY)
    with pytest.raises(OutputError, match="1 of 1 partitions"):
        open_output(str(tmp_path / "summaries"), KEY, ["2026-11-01"], allow_missing=True)


def test_an_annotation_that_does_not_work_names_those_that_do(tmp_path):
    publish(tmp_path / "summaries", (None,))
    with pytest.raises(OutputError) as error:
        load(tmp_path, list)
    assert "cannot be loaded as list; pandas.DataFrame, polars.DataFrame, polars.LazyFrame, pyarrow.Table, " in str(error.value)


@pytest.mark.parametrize("annotation", [pl.DataFrame, pl.LazyFrame, duckdb.DuckDBPyRelation])
@pytest.mark.parametrize("days", [("2026-11-01", "2026-11-02"), (None,)], ids=["days", "whole"])
def test_polars_and_duckdb_get_the_same_rows_with_the_partition_as_text(tmp_path, annotation, days):
    publish(tmp_path / "summaries", days)
    tags = {"dagster/asset_partition_range_start": "2026-11-01", "dagster/asset_partition_range_end": "2026-11-02"}
    partitioned = {"partitions": DAYS, "tags": tags} if days[0] else {}
    loaded = load(tmp_path, annotation, **partitioned)
    assert isinstance(loaded, annotation)
    table = loaded.collect() if annotation is pl.LazyFrame else loaded.pl() if annotation is duckdb.DuckDBPyRelation else loaded
    assert table.sort(table.columns).rows(named=True) == pl.from_arrow(load(tmp_path, pa.Table, **partitioned)).sort(table.columns).rows(
        named=True
    )
    if days[0]:
        assert table.schema["day"] == pl.String
        assert sorted(table["day"].unique()) == list(days)


def test_a_lazy_frame_and_a_relation_read_what_is_asked_of_them(tmp_path):
    publish(tmp_path / "summaries", ("2026-11-01", "a%2Fb c*"))
    everything = {"partitions": dg.StaticPartitionsDefinition(["2026-11-01", "a/b c*"])}
    tags = {"dagster/asset_partition_range_start": "2026-11-01", "dagster/asset_partition_range_end": "a/b c*"}
    lazy = load(tmp_path, pl.LazyFrame, tags=tags, **everything)
    assert lazy.filter(pl.col("day") == "a/b c*").select("id").collect()["id"].to_list() == [1, 2]
    relation = load(tmp_path, duckdb.DuckDBPyRelation, tags=tags, **everything)
    assert relation.aggregate("day, count(*) AS n", "day").order("day").fetchall() == [("2026-11-01", 2), ("a/b c*", 2)]


@pytest.mark.parametrize(
    ("annotation", "library"), [(pl.LazyFrame, "polars"), (pl.DataFrame, "polars"), (duckdb.DuckDBPyRelation, "duckdb")]
)
def test_a_library_that_is_missing_is_named_with_what_installs_it(tmp_path, annotation, library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(OutputError, match=rf"cannot be loaded as {library}.* pip install 'claude-batch-dagster\[{library}\]'"):
        choose_conversion(annotation, KEY)


def test_a_body_that_returns_a_value_is_told_to_yield_from_run(tmp_path):
    context = dg.build_output_context(asset_key=KEY)
    with pytest.raises(OutputError, match=r"yield from claude_batch.run"):
        ClaudeBatchIOManager(output=str(tmp_path)).handle_output(context, 1)


def test_partition_keys_are_unquoted_as_they_were_written(tmp_path):
    publish(tmp_path / "summaries", ("a%2Fb c",))
    assert open_output(str(tmp_path / "summaries"), KEY, ["a/b c"]).to_table()["day"].to_pylist() == ["a/b c"] * 2


def test_statuses_are_counted_over_all_partitions(tmp_path):
    publish(tmp_path / "summaries", ("2026-11-01", "2026-11-02"))
    counts = count_statuses(str(tmp_path / "summaries"), KEY)
    assert (counts["succeeded"], counts["errored"], counts["pending"]) == (2, 2, 0)


def test_a_url_is_read_through_the_object_store(tmp_path, monkeypatch):
    publish(tmp_path / "summaries", ("2026-11-01", "2026-11-02"))
    from claude_batch_dagster.storage.store import Store

    monkeypatch.setattr(Store, "folder", None)
    monkeypatch.setattr("claude_batch_dagster.storage.store.absolute_uri", lambda uri: uri)
    dataset = open_output(f"file://{tmp_path}/summaries", KEY, ["2026-11-02"])
    assert dataset.to_table()["day"].to_pylist() == ["2026-11-02"] * 2
    for annotation in (pl.LazyFrame, duckdb.DuckDBPyRelation):
        loaded = choose_conversion(annotation, KEY)(dataset)
        frame = loaded.collect() if annotation is pl.LazyFrame else loaded.pl()
        assert frame["day"].to_list() == ["2026-11-02"] * 2


def test_outputs_lie_below_the_root_of_their_endpoint_unless_told_otherwise(tmp_path):
    assert outputs_folder(str(tmp_path), None, "anthropic") == f"{tmp_path}/output"
    assert outputs_folder(str(tmp_path), None, "simulator") == f"{tmp_path}/simulated/output"
    assert outputs_folder(str(tmp_path), "s3://lake/claude/", "simulator") == "s3://lake/claude"


def test_relations_of_two_arguments_are_joined_and_found_by_their_names(tmp_path):
    publish(tmp_path / "summaries", (None,))
    one, two = (load(tmp_path, duckdb.DuckDBPyRelation).set_alias(name) for name in ("one", "two"))
    assert one.join(two, "one.id = two.id").count("*").fetchall() == [(2,)]
    assert duckdb.sql("SELECT count(*) FROM one JOIN two USING (id)").fetchall() == [(2,)]
