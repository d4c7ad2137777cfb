"""What is known of an output's columns before it is written, and which of the source's columns each comes from.

Dagster's own UI does not draw column lineage, nor a column's tags (1.13.27, looked at): what people see is a column's description, so that
says it too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from claude_batch_dagster.assets.asked import AskedAsset
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
    return tell_origins(dg.TableSchema(columns=[*carried, *fields, *status]), asked)


def tell_origins(schema: dg.TableSchema, asked: AskedAsset, lineage: dg.TableColumnLineage | None = None) -> dg.TableSchema:
    """Return the columns with a sentence in their descriptions: from which of the source's columns each comes.

    Args:
        schema: An output's columns.
        asked: What is asked.
        lineage: One that a translator made, which then says it; None for what `asked` says.
    """
    own = {field.name for field in asked.task.fields}
    shown = prompt_columns(asked.task, [column.name for column in source_columns(asked.source)])
    dep = source_dep(asked.source)
    place = "the source" if dep is None else f"`{dep.asset_key.to_user_string()}`"

    def tell(name: str) -> str | None:
        if lineage is not None:
            deps = lineage.deps_by_column.get(name) or ()
            return f"From {', '.join(f'`{one.column_name}` of `{one.asset_key.to_user_string()}`' for one in deps)}." if deps else None
        if name in own:
            return f"From {', '.join(f'`{column}`' for column in shown)} of {place}." if shown else f"From a whole row of {place}."
        return None if name in STATUS_DESCRIPTIONS else f"As in {place}."

    def describe(column: dg.TableColumn) -> str | None:
        return " ".join(filter(None, (column.description, tell(column.name)))) or None

    return dg.TableSchema(
        columns=[
            dg.TableColumn(one.name, type=one.type, description=describe(one), constraints=one.constraints, tags=one.tags)
            for one in schema.columns
        ],
        constraints=schema.constraints,
    )


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
    return own_lineage(asked, defined) or column_lineage(asked, columns)


def own_lineage(asked: AskedAsset, defined: object) -> dg.TableColumnLineage | None:
    """Return a definition's lineage where a translator made it, None where it is ours."""
    return defined if isinstance(defined, dg.TableColumnLineage) and defined != column_lineage(asked) else None


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
