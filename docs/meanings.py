"""What the code cannot say: what each variable, status, key, exit code and record is for. `generate.py` writes it into the reference."""

import msgspec

from claude_batch_dagster.core import records

VARIABLES = {
    "ANTHROPIC_API_KEY": ("the worker, and the embedded one", "The key. Nothing else reads it; it is in no record, log or message.", ""),
    "ANTHROPIC_BASE_URL": (
        "the worker; clients, to name the endpoint",
        "Another address of the API: a gateway, or a `claude-batch simulator`.",
        "Anthropic's",
    ),
    "CLAUDE_BATCH_DEMO_DIR": ("the demo", "Folder or URL of the demo's reviews and report.", "`demo` below the root"),
    "CLAUDE_BATCH_POLL_SECONDS": ("the worker", "The shortest time between two looks at a batch; at least 0.2.", "30"),
    "CLAUDE_BATCH_ROOT": ("clients", "The root: folder or URL of the records and answers.", "`.claude_batch`"),
    "CLAUDE_BATCH_SEND_SECONDS": ("the worker", "What an upload may take, besides a share for its size.", "15"),
    "CLAUDE_BATCH_SETTLE_SECONDS": (
        "the worker",
        "How long after an upload without a reply its batch may still appear in the list; the run waits so long before it decides.",
        "60",
    ),
    "CLAUDE_BATCH_SIMULATE": ("clients, the worker", "`1`, `true`, `yes` or `on`: ask a simulator instead of Claude.", ""),
    "CLAUDE_BATCH_SIMULATOR_WORKSPACE": ("the simulator", "Value of its `anthropic-workspace-id` header.", "`wrkspc_simulated`"),
    "CLAUDE_BATCH_TASK_QUEUE": ("clients, the worker", "The worker's task queue.", "`claude-batch`"),
    "CLAUDE_BATCH_TEMPORAL_UI": ("clients", "Address of Temporal's UI, for links.", "the embedded one's"),
    "DAGSTER_HOME": ("`demo`, `dev`", "Dagster's own. Without it they use `dagster` below a local root.", ""),
    "TEMPORAL_ADDRESS": ("clients, the worker", "`host:port` of a Temporal server of your own.", "an embedded one"),
    "TEMPORAL_CONFIG_FILE": ("clients, the worker", "Temporal's own: file of connection profiles.", "Temporal's"),
    "TEMPORAL_NAMESPACE": ("clients, the worker", "Temporal's own. A root is pinned to one namespace.", "`default`"),
    "XDG_CACHE_HOME": ("the embedded stack", "Where it keeps its files when the root is a URL.", "`~/.cache`"),
}
NOT_FOR_USERS = {"CLAUDE_BATCH_FAULT_POINTS"}
STATUS_MEANINGS: dict[str, tuple[str, str]] = {
    "succeeded": ("Claude answered, and the answer fits the task's schema.", "no"),
    "refused": ("Claude declined to answer (`stop_reason` refusal).", "no"),
    "truncated": (
        "The answer was cut at `max_tokens`, or at the context window.",
        "no, until `--retry-failed` or `--ask-again`; yes where its run ended before the next round",
    ),
    "invalid": (
        "The answer breaks the schema, is empty, or ended for another reason than its end.",
        "no, until `--retry-failed` or `--ask-again`; yes where its run ended before the next round",
    ),
    "errored": (
        "The API rejected the request or failed; `error` begins with the type.",
        "yes, but for `invalid_request_error`, `request_too_large` and `too_large`",
    ),
    "expired": ("The batch ended, after 24 hours, before this request's turn.", "yes; in the same run too, three times in all"),
    "canceled": ("The batch was canceled before this request's turn.", "yes"),
    "skipped": ("The text is null or blank: nothing was asked.", "nothing to ask"),
    "pending": ("There is no answer yet: the run was canceled, is parked, or the row changed after it was planned.", "yes"),
}
METADATA = {
    "dagster/row_count": "Rows of the output, where it has no partitions.",
    "dagster/partition_row_count": "Rows of the partition.",
    "dagster/column_schema": "The columns with type, description, and which of the source's columns each comes from.",
    "dagster/uri": "The file, or the output's folder.",
    "claude_batch/cost": "What this run paid for these rows, to read: `$0.012`; `unknown` where the model has no known price. "
    "On an observation of a deferred run: what it will probably cost, and at most.",
    "claude_batch/cost_usd": "The same as a number, which Dagster plots; not there without a known price. A shared answer is counted where it was asked first.",
    "claude_batch/input_tokens": "Prompt tokens that this run paid for, less cache reads and writes.",
    "claude_batch/output_tokens": "Tokens of the answers that this run paid for, thinking included.",
    "claude_batch/requests": "Distinct requests that this run asked.",
    "claude_batch/already_answered": "Distinct requests that had an answer before.",
    "claude_batch/batches": "Batches of this run that answered these rows.",
    "claude_batch/duration_s": "Seconds from the plan to the output.",
    "claude_batch/endpoint": "Who answered: `anthropic`, `simulator`, or the host of another address.",
    "claude_batch/labels": "Answered rows by label, for each column that is an enum, a boolean, or has at most 12 short texts; "
    "`(none)` where an answer has none.",
    "claude_batch/console": "The Console's list of batches of the default workspace, where batches were sent to Anthropic. Choose your key's workspace there.",
    "chart": "Labels' shares and cost, over the last 30 partitions or materializations: an image of at most 15 kB, in the last "
    "materialization of a run.",
    "claude_batch/run": "`batch run r42`, for `claude-batch status r42`. Not there where nothing was asked.",
    "claude_batch/workflow": "The run's page in Temporal's UI where that is known, else its workflow id.",
    "claude_batch/limit": "Set where a limit left rows out.",
    "preview": "The first five rows.",
}
OTHER_KEYS = {
    "claude_batch/task": "On the asset itself: what it asks. Keep it where you change specs afterwards.",
    "claude_batch/failed_partitions": "On a failed run: partition and reason.",
    "claude_batch/error": "On a failed run: the error's class, see [errors](errors.md).",
    "claude_batch/question": "On a failed run: what a deferred batch run asks a person. As a run's tag: which batch run asks.",
    "claude_batch/state": "On an observation: the run was deferred. With `claude_batch/run`, `requests`, `workflow`.",
    "claude_batch/expected_usd": "On an observation: what the deferred batch run will probably cost.",
    "claude_batch/worst_usd": "On an observation: what it may cost at most.",
    "claude_batch/collects": "Tag of a run that the sensor requested: which deferred job it collects.",
    "claude_batch/deferred_by": "Tag of such a run: the Dagster run that was deferred.",
    "claude_batch/assets": "On the sensor: what it collects.",
}
EXIT_CODES = (
    ("0", "Every row is succeeded, refused or skipped. Also: `plan` shown, `--detach` accepted."),
    ("3", "The output is written; some rows are truncated, invalid, errored, expired, canceled or pending."),
    ("1", "Nothing was written, or a partition was not: the source, the output, the root, the cap, the key or a server is in the way."),
    ("2", "Wrong usage: the options, or the task that they describe. Nothing was sent."),
    ("130", "Interrupted."),
)
RECORDS: tuple[tuple[str, type[msgspec.Struct] | None, str], ...] = (
    ("root.json", records.RootRecord, "once"),
    ("workspace.json", records.WorkspaceRecord, "once"),
    ("tasks/{task_key}.json", None, "all that a task adds to a row, its name apart"),
    ("preflights/{task_key}.json", records.PreflightRecord, "once a task"),
    ("keys/{source digest}-{task_key}.parquet", None, "a row a source row: request_key, and why a row is not asked (skipped, too_large)"),
    ("plans/{run_id}/requests/{round}-{shard}-{hash}.json", None, "the body of one POST"),
    ("plans/{run_id}/keys.parquet", None, "a row a request that the run owns: task_key, request_key, shard, position"),
    ("log/{n}.json", records.LogEntry, "on the next number; from here on the plan's requests are its own"),
    ("submissions/{run_id}/{round}-{shard}/{i}.json", None, "one record a step: send, batch, not, closed (below)"),
    ("rounds/{run_id}/{r}.json", records.RoundRecord, "from round 2"),
    ("responses/{endpoint}/{task_key}/{batch_id}.parquet", None, "what Claude answered; written when the batch is collected"),
    (
        "responses/{endpoint}/{task_key}/compacted-{id}.parquet",
        None,
        "the rows of several small response files, as they were, batch after batch; for two days beside these",
    ),
    (
        "index/{endpoint}/{task_key}/{generation}.json",
        None,
        "which response files the index covers, and which are replaced; the newest counts",
    ),
    ("index/{endpoint}/{task_key}/{generation}-{id}.keys", None, "where the best response of each request is, 23 bytes a request, sorted"),
    ("done/{n}.json", records.DoneRecord, "after the answers"),
    (
        "deferred/{n}-{digest}.json",
        records.DeferralRecord,
        "where a Dagster run does not wait for run n; removed once its answers are published",
    ),
)
