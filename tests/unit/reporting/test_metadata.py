"""What a materialization says about itself."""

import dagster as dg
import pyarrow as pa

from claude_batch_dagster import ParquetDataset, Summarize
from claude_batch_dagster.assets.asked import AskedAsset
from claude_batch_dagster.core.records import ModelUsage
from claude_batch_dagster.core.status import STATUSES
from claude_batch_dagster.reporting.metadata import (
    check_result,
    count_rows,
    data_version,
    markdown_table,
    materialization_metadata,
    rows_without_answer,
    table_schema,
)
from claude_batch_dagster.storage.output import output_schema
from claude_batch_dagster.storage.output_file import WrittenOutput
from claude_batch_dagster.verbs.connection import Connection
from claude_batch_dagster.verbs.publish import PublishedOutput
from claude_batch_dagster.verbs.result import JobResult
from claude_batch_dagster.verbs.tally import Tally

TASK = Summarize(name="summaries", column="text", model="claude-haiku-5-5")
ASKED = AskedAsset(task=TASK, source=ParquetDataset(path="reviews", key="id"), columns="key")
SCHEMA = output_schema(TASK, ["id"], pa.schema([pa.field("id", pa.int64())]))
KEY = dg.AssetKey("summaries")


def output(partition: str | None = None, *, cost_nano_usd: int | None = 2_000_000, **rows: int) -> PublishedOutput:
    folder = f"day={partition}/" if partition else ""
    written = WrittenOutput(
        uri=f"/out/summaries/{folder}part-0.parquet",
        rows={**dict.fromkeys(STATUSES, 0), **rows},
        answers=sum(rows.values()),
        input_tokens=100,
        output_tokens=20,
        cache_read_tokens=0,
        cache_write_tokens=0,
        cost_nano_usd=cost_nano_usd,
        batches=1,
        schema=SCHEMA,
        preview=({"id": 1, "summary": "Fine.", "status": "succeeded", "task_key": "ab"},),
    )
    return PublishedOutput(task="summaries", partition=partition, written=written)


def describe(
    *outputs: PublishedOutput,
    ui_url: str | None = "http://127.0.0.1:8233",
    run: str | None = "r42",
    partitioned: bool = False,
    limit: int | None = None,
    shown: list[PublishedOutput] | None = None,
    tries: dict[str, ModelUsage] | None = None,
    endpoint: str = "simulator",
    batches: int = 1,
    labels: dict[str, dict[str, int]] | None = None,
):
    result = JobResult(
        root="/root",
        run=run,
        run_id="0197" if run else None,
        workflow_id="claude-batch/0197" if run else None,
        rows={},
        requests={},
        batches=batches,
        tokens={},
        cost_usd=None,
        outputs=outputs,
        tallies={("summaries", one.partition): Tally(rows=3, asked=2, already_answered=1) for one in outputs},
        failed_partitions={},
        detached=False,
        duration_s=1.5,
        warnings=(),
        limit=limit,
        tries=tries or {},
    )
    connection = Connection(address="127.0.0.1:7233", ui_url=ui_url)
    return materialization_metadata(
        shown or outputs,
        result,
        folder="/out/summaries",
        fields=TASK.fields,
        connection=connection,
        partitioned=partitioned,
        endpoint=endpoint,
        labels=labels,
    )


def test_every_number_is_there_even_where_it_is_zero():
    metadata = describe(output(succeeded=2, errored=1))
    assert metadata["dagster/row_count"] == 3
    assert (metadata["claude_batch/requests"], metadata["claude_batch/already_answered"], metadata["claude_batch/batches"]) == (2, 1, 1)
    assert (metadata["claude_batch/cost_usd"], metadata["claude_batch/duration_s"]) == (0.002, 1.5)
    assert {status: metadata[f"claude_batch/{status}"] for status in STATUSES} == {
        **dict.fromkeys(STATUSES, 0),
        "succeeded": 2,
        "errored": 1,
    }


def test_a_partition_counts_its_own_rows_and_names_its_file():
    metadata = describe(output("2026-11-01", succeeded=3), partitioned=True)
    assert metadata["dagster/partition_row_count"] == 3
    assert "dagster/row_count" not in metadata
    assert metadata["dagster/uri"] == "/out/summaries/day=2026-11-01/part-0.parquet"


def test_an_output_of_several_files_is_summed_and_names_its_folder():
    metadata = describe(output("a", succeeded=3), output("b", skipped=1))
    assert (metadata["dagster/row_count"], metadata["claude_batch/requests"], metadata["claude_batch/cost_usd"]) == (4, 4, 0.004)
    assert metadata["claude_batch/batches"] == 1, "the two share a batch"
    assert metadata["dagster/uri"] == "/out/summaries"


def test_the_try_of_a_new_task_is_told_once_with_the_first_partition():
    tried = ModelUsage(
        model="claude-haiku-5-5",
        over_100k=False,
        requests=1,
        input_tokens=7,
        output_tokens=3,
        cache_read_tokens=0,
        cache_write_tokens=0,
        cost_nano_usd=500_000,
    )
    parts = [output("a", succeeded=1), output("b", succeeded=1)]
    first, second = (describe(*parts, partitioned=True, shown=[part], tries={"summaries": tried}) for part in parts)
    assert (first["claude_batch/cost_usd"], second["claude_batch/cost_usd"]) == (0.0025, 0.002)
    assert (first["claude_batch/input_tokens"], second["claude_batch/input_tokens"]) == (107, 100)
    assert (first["claude_batch/output_tokens"], second["claude_batch/output_tokens"]) == (23, 20)
    assert describe(*parts, tries={"summaries": tried})["claude_batch/cost_usd"] == 0.0045
    assert describe(*parts, tries={"labels": tried})["claude_batch/cost_usd"] == 0.004


def test_an_unknown_price_is_said_and_never_a_zero():
    metadata = describe(output(cost_nano_usd=None, succeeded=1))
    assert "claude_batch/cost_usd" not in metadata
    assert "unknown" in metadata["claude_batch/cost"]
    assert describe(output(succeeded=1))["claude_batch/cost"] == "$0.002"


def test_the_workflow_is_a_link_where_there_is_a_ui_and_its_id_where_not():
    assert describe(output(succeeded=1))["claude_batch/workflow"] == dg.MetadataValue.url(
        "http://127.0.0.1:8233/namespaces/default/workflows/claude-batch%2F0197"
    )
    assert describe(output(succeeded=1), ui_url=None)["claude_batch/workflow"] == "claude-batch/0197"
    assert "claude_batch/workflow" not in describe(output(succeeded=1), run=None)


def test_a_limit_that_left_rows_out_is_said_and_no_other():
    assert describe(output(succeeded=1), limit=20)["claude_batch/limit"] == 20
    assert "claude_batch/limit" not in describe(output(succeeded=1))


def test_only_real_batches_are_linked_to_the_console():
    assert describe(output(succeeded=1), endpoint="anthropic")["claude_batch/console"].value.startswith("https://platform.claude.com/")
    assert "claude_batch/console" not in describe(output(succeeded=1), endpoint="simulator")
    assert "claude_batch/console" not in describe(output(succeeded=1), endpoint="anthropic", batches=0)
    assert describe(output(succeeded=1))["claude_batch/endpoint"] == "simulator"


def test_labels_are_counted_where_there_are_any():
    counted = {"label": {"praise": 1, "complaint": 0}}
    assert describe(output(succeeded=1), labels=counted)["claude_batch/labels"] == dg.MetadataValue.json(counted)
    assert "claude_batch/labels" not in describe(output(succeeded=1), labels={})


def test_columns_are_described_by_the_task_and_by_us():
    columns = {column.name: column for column in table_schema(SCHEMA, TASK.fields).columns}
    assert columns["summary"].description == "The summary, at most 40 words."
    assert columns["status"].description.startswith("What became of the row")
    assert (columns["status"].constraints.nullable, columns["summary"].constraints.nullable) == (False, True)


def test_a_preview_cannot_be_broken_by_what_is_in_it():
    table = markdown_table(
        [{"id": 1, "summary": "a | b\n<script> " + "x" * 200, "labels": ["p", "q"], "score": 0.123456789, "input_tokens": 5, "empty": None}]
    )
    header, _, row = table.splitlines()
    assert header == "| id | summary | labels | score |"
    assert row.count(" | ") == 3
    assert "\\|" in row
    assert "<script" not in row.replace("\\<", "")
    assert "p, q" in row
    assert "0.123457" in row
    assert len(row) < 200
    assert markdown_table([]) == "No rows."


def test_a_preview_names_the_status_where_a_row_did_not_succeed_and_leaves_empty_lists_out():
    rows = [{"id": 1, "labels": [], "status": "succeeded"}, {"id": 2, "labels": [], "status": "refused"}]
    assert markdown_table(rows).splitlines()[0] == "| id | status |"
    assert markdown_table(rows[:1]).splitlines()[0] == "| id |"


def test_a_preview_of_long_texts_stays_short_enough_to_be_shown_at_once():
    table = markdown_table([{"id": row, "summary": "long " * 100, "reason": "why " * 100} for row in range(5)])
    assert len(table) < 1000
    assert table.count("long") > 20


def test_the_check_warns_about_rows_without_an_answer_and_not_about_refused_or_skipped_ones():
    good = check_result(KEY, "rows_answered", count_rows([output(succeeded=2, refused=1, skipped=1)]))
    assert good.passed
    bad = check_result(KEY, "rows_answered", count_rows([output(succeeded=2, expired=1), output(pending=1)]))
    assert (bad.passed, bad.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert bad.description == "2 of 4 rows have no answer: 1 expired, 1 pending. The column `error` says why."
    assert bad.metadata["expired"].value == 1
    shown = check_result(KEY, "rows_answered", count_rows([output(expired=1)]), keys=["review_id"], file="s3://lake/a.parquet").description
    assert shown.startswith("1 of 1 rows has no answer: 1 expired. The column `error` says why.\n\nRows to look at:\n\n```sh\n")
    assert "SELECT review_id, status, error\nFROM 's3://lake/a.parquet'\nWHERE status IN ('expired')" in shown
    assert rows_without_answer(count_rows([output(pending=2)])) == {"pending": 2}


def test_simulated_answers_have_another_data_version_than_real_ones():
    rows = count_rows([output(succeeded=2)])
    assert data_version("simulator", ASKED, ["d1"], rows) != data_version("anthropic", ASKED, ["d1"], rows)


def test_the_data_version_changes_with_what_was_asked_and_published_only():
    rows = count_rows([output(succeeded=2)])
    version = data_version("anthropic", ASKED, ["d1", "d2"], rows)
    assert version == data_version("anthropic", ASKED, ["d2", "d1"], rows)
    others = [
        data_version("simulator", ASKED, ["d1", "d2"], rows),
        data_version("anthropic", ASKED, ["d1"], rows),
        data_version("anthropic", ASKED, ["d1", "d2"], count_rows([output(succeeded=1, pending=1)])),
        data_version("anthropic", AskedAsset(task=TASK, source=ASKED.source, columns="all"), ["d1", "d2"], rows),
    ]
    assert len({version.value, *(other.value for other in others)}) == 5
