"""What is known of an output's columns before it is written, and which of the source's columns each comes from."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from claude_batch_dagster.asked import AskedAsset
from claude_batch_dagster.core.errors import TaskError
from claude_batch_dagster.core.schema import Field, FieldType
from claude_batch_dagster.core.status import STATUS_DESCRIPTIONS
from claude_batch_dagster.core.task import ClaudeTask
from claude_batch_dagster.core.template import parse_template
from claude_batch_dagster.storage.dataset import Dataset

UNKNOWN_TYPE = "as in the source"
_STATUS_TYPES = {
    **{name: "int64" for name in STATUS_DESCRIPTIONS if name.endswith("_tokens")},
    "cost_usd": "double",
    "answered_at": "timestamp[us, tz=UTC]",
}
_NEVER_NULL = frozenset(("status", "task_key"))
_PLAIN_TYPES = {
    FieldType.STRING: "string",
    FieldType.INTEGER: "int64",
    FieldType.NUMBER: "double",
    FieldType.BOOLEAN: "bool",
    FieldType.JSON: "string",
}
_SLOT = re.compile(r"\{\{|\}\}|\{([^\W\d][\w .\-]*?)\}")


def expected_schema(asked: AskedAsset) -> dg.TableSchema:
    """Return the output's columns as far as they are known without reading the source.

    With `columns="all"` these are the source's columns that its asset names, else its key and what the prompt shows. Carried columns have
    the types that the source's asset names, else none.
    """
    known = {column.name: column for column in source_columns(asked.source)}
    carried = [known.get(name) or dg.TableColumn(name, type=UNKNOWN_TYPE) for name in _carried(asked, known)]
    fields = [
        dg.TableColumn(field.name, type=_arrow_type(field), description=field.description, constraints=_nullable(True))
        for field in asked.task.fields
    ]
    status = [
        dg.TableColumn(
            name, type=_STATUS_TYPES.get(name, "string"), description=description, constraints=_nullable(name not in _NEVER_NULL)
        )
        for name, description in STATUS_DESCRIPTIONS.items()
    ]
    return dg.TableSchema(columns=[*carried, *fields, *status])


def column_lineage(asked: AskedAsset, columns: Iterable[str] | None = None) -> dg.TableColumnLineage | None:
    """Return which columns of the source's asset each column comes from: a task's field from those that its prompt shows.

    Args:
        asked: What is asked.
        columns: The output's columns where it is written; None before, when they are as far known as `expected_schema` tells.

    Returns:
        None where the source names no asset.
    """
    dep = source_dep(asked.source)
    if dep is None:
        return None
    shown = prompt_columns(asked.task, [column.name for column in source_columns(asked.source)]) or asked.source.key_columns
    own = {field.name for field in asked.task.fields}
    names = [column.name for column in expected_schema(asked).columns] if columns is None else list(columns)
    return dg.TableColumnLineage(
        deps_by_column={
            name: [dg.TableColumnDep(dep.asset_key, column) for column in (shown if name in own else [name])]
            for name in names
            if name in own or name not in STATUS_DESCRIPTIONS
        }
    )


def written_lineage(asked: AskedAsset, defined: object, columns: Iterable[str]) -> dg.TableColumnLineage | None:
    """Return the lineage of an output's columns: the definition's where a translator made another, else all that was written."""
    if isinstance(defined, dg.TableColumnLineage) and defined != column_lineage(asked):
        return defined
    return column_lineage(asked, columns)


def source_dep(source: Dataset) -> dg.AssetDep | None:
    """Return the dependency on the asset that writes a source, None where it names none."""
    return None if source.asset is None else asset_dep(source.asset)


def asset_dep(asset: Any) -> dg.AssetDep:
    """Return the dependency on an asset that is named in any way; in a text, `/` parts the key."""
    if isinstance(asset, dg.AssetDep):
        return asset
    return dg.AssetDep(dg.AssetKey.from_user_string(asset) if isinstance(asset, str) else asset)


def source_columns(source: Dataset) -> Sequence[dg.TableColumn]:
    """Return the columns that the source's asset says it has, nothing where it says none."""
    metadata: Mapping[str, Any] = {}
    if isinstance(source.asset, dg.AssetSpec):
        metadata = source.asset.metadata
    elif isinstance(source.asset, dg.AssetsDefinition) and len(source.asset.metadata_by_key) == 1:
        (metadata,) = source.asset.metadata_by_key.values()
    schema = metadata.get("dagster/column_schema")
    schema = getattr(schema, "schema", schema)
    return schema.columns if isinstance(schema, dg.TableSchema) else ()


def prompt_columns(task: ClaudeTask, columns: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the source's columns that a task shows to Claude, each once; nothing where a function may read any of them.

    Args:
        task: What is asked.
        columns: The source's, where they are known: a slot is the longest name that fits. Else every slot that looks like a name is one.
    """
    if task.column is not None:
        return (task.column,)
    if not isinstance(task.prompt, str):
        return tuple(task.prompt_columns or ())
    if columns:
        try:
            return tuple(dict.fromkeys(parse_template(task.prompt, columns).columns))
        except TaskError:
            # The plan refuses it, which has read the source: what its asset says may be out of date.
            pass
    return tuple(dict.fromkeys(name for name in _SLOT.findall(task.prompt) if name))


def _carried(asked: AskedAsset, known: Mapping[str, dg.TableColumn]) -> list[str]:
    match asked.columns:
        case "key":
            names: Sequence[str] = asked.source.key_columns
        case "all":
            names = tuple(known) or (*asked.source.key_columns, *prompt_columns(asked.task))
        case _:
            named = (asked.columns,) if isinstance(asked.columns, str) else asked.columns
            names = [name for one in named for name in (asked.source.key_columns if one == "key" and one not in known else (one,))]
    return [name for name in dict.fromkeys(names) if name != asked.source.partition_column]


def _arrow_type(field: Field) -> str:
    match field.type:
        case FieldType.LIST:
            return f"list<item: {'string' if field.item is None else _arrow_type(field.item)}>"
        case FieldType.STRUCT:
            return f"struct<{', '.join(f'{child.name}: {_arrow_type(child)}' for child in field.children)}>"
        case _:
            return _PLAIN_TYPES[field.type]


def _nullable(nullable: bool) -> dg.TableColumnConstraints:
    return dg.TableColumnConstraints(nullable=nullable)
