"""What Dagster notes about a materialization so that it knows later whether it is stale.

Dagster does so for a MaterializeResult. One that is logged for a single partition of a run, since others of the range failed, has to bring
it along: the tags are those of Dagster 1.13.
"""

import dagster as dg

DATA_VERSION_TAG = "dagster/data_version"
_NO_VERSION = "INITIAL"
_NO_EVENT = "NULL"


def provenance_tags(context: dg.AssetExecutionContext, key: dg.AssetKey, version: dg.DataVersion, *, began_at: float) -> dict[str, str]:
    """Return the tags of a materialization: its data version, its code version, and what was upstream.

    Args:
        context: Of the run.
        key: The asset.
        version: Of its data.
        began_at: When the run began to read its source, in seconds of the epoch: what is newer upstream was not asked about.
    """
    spec = context.assets_def.specs_by_key[key]
    tags = {
        DATA_VERSION_TAG: version.value,
        "dagster/data_version_is_user_provided": "true",
        "dagster/code_version": spec.code_version or context.run.run_id,
    }
    for dep in spec.deps:
        record = _newest(context.instance, dep.asset_key, began_at)
        name = dep.asset_key.to_user_string()
        tags[f"dagster/input_data_version/{name}"] = _NO_VERSION if record is None else _version_of(record)
        tags[f"dagster/input_event_pointer/{name}"] = _NO_EVENT if record is None else str(record.storage_id)
    return tags


def _newest(instance: dg.DagsterInstance, key: dg.AssetKey, before: float) -> dg.EventLogRecord | None:
    wanted = dg.AssetRecordsFilter(asset_key=key, before_timestamp=before)
    for fetch in (instance.fetch_materializations, instance.fetch_observations):
        records = fetch(wanted, limit=1).records
        if records:
            return records[0]
    return None


def _version_of(record: dg.EventLogRecord) -> str:
    event = record.asset_materialization or record.asset_observation
    return _NO_VERSION if event is None else (event.tags or {}).get(DATA_VERSION_TAG, _NO_VERSION)
