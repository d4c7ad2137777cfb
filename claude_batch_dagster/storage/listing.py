"""Which files a dataset has: of a path, of a template, or those that a run wrote; and the columns that stand in their paths."""

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from claude_batch_dagster.core.errors import SourceError
from claude_batch_dagster.storage.dataset import ListedDataset, ParquetDataset
from claude_batch_dagster.storage.store import Store
from claude_batch_dagster.storage.templates import SUFFIXES, PathTemplate, is_hidden, read_template


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file as it was listed.

    Attributes:
        path: Below the source's store.
        version: ETag; changes when the file does.
        hive: (column, value) pairs of its path.
        value: Only its rows with this value of the partition column; None for all of them.
    """

    path: str
    version: str
    hive: tuple[tuple[str, str], ...] = ()
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a dataset.

    Attributes:
        store: Where they are.
        files: In order of their paths.
        hive_columns: Of every path, in order; those of a template end with the partition column.
        template: None where the path is none.
    """

    dataset: ParquetDataset
    store: Store
    files: list[SourceFile]
    hive_columns: tuple[str, ...]
    template: PathTemplate | None

    def describe_place(self, partition: str | None) -> str:
        """Return where a partition's rows would be."""
        if self.template is not None:
            return f"file {self.template.folder}/{self.template.render(partition or '')}"
        if isinstance(self.dataset, ListedDataset) and self.dataset.files is not None:
            return f"rows in {self.dataset.uri}"
        if self.dataset.partition_column in self.hive_columns:
            return f"folder {self.dataset.partition_column}={partition}/ in {self.dataset.uri}"
        return f"row in {self.dataset.uri}: the column {self.dataset.partition_column!r} has no such value"


def list_dataset(dataset: ParquetDataset) -> Listing:
    """List a dataset.

    Raises:
        SourceError: Terminal. No such path, no Parquet file, mixed hive columns.
    """
    listed = dataset if isinstance(dataset, ListedDataset) else None
    template = read_template(dataset.uri, listed.key_format if listed is not None else None)
    if template is not None:
        store = Store(template.folder, refusal=SourceError)
        files = _list_template(store, template, dataset, listed.only if listed is not None else None)
    elif listed is not None and listed.files is not None:
        store = Store(dataset.uri, refusal=SourceError)
        files = [_describe(path, read_version(store, path)) for path in listed.files]
    else:
        store, files = _list_path(dataset)
    found = {tuple(column for column, _ in file.hive) for file in files}
    if len(found) > 1:
        shapes = " and ".join(sorted("/".join(f"{column}=..." for column in shape) or "no folder" for shape in found))
        raise SourceError(
            f"The files of {dataset.uri} lie in different layouts: {shapes}. Nothing was sent. Give the folder of one of them."
        )
    return Listing(dataset=dataset, store=store, files=files, hive_columns=found.pop() if found else (), template=template)


def read_version(store: Store, path: str) -> str:
    """Return a file's version as it is now.

    Raises:
        SourceError: Terminal. It is gone.
    """
    try:
        return store.version(path)
    except FileNotFoundError:
        raise SourceError(f"The source {store.uri}/{path} does not exist. Nothing was sent. Check the path.") from None


def _list_path(dataset: ParquetDataset) -> tuple[Store, list[SourceFile]]:
    uri, column = dataset.uri, dataset.partition_column
    local = None if "://" in uri else Path(uri)
    if local is not None and not local.exists():
        raise SourceError(f"The source {uri} does not exist. Nothing was sent. Check the path.", uri=uri)
    folder, _, name = uri.rpartition("/")
    if local.is_file() if local is not None else _is_object(folder, name):
        if column is not None and f"/{column}=" in folder:
            # A file in a partition's folder belongs to that partition.
            folder, _, rest = folder.partition(f"/{column}=")
            name = f"{column}={rest}/{name}"
        store = Store(folder, refusal=SourceError)
        return store, [_describe(name, read_version(store, name))]
    store = Store(uri, refusal=SourceError)
    files = [_describe(path, version) for path, version in store.list_versions("") if path.endswith(SUFFIXES) and not is_hidden(path)]
    if not files:
        raise SourceError(f"The source {uri} has no Parquet file (*.parquet). Nothing was sent. Check the path.", uri=uri)
    return store, files


def _is_object(folder: str, name: str) -> bool:
    """Tell whether a URL is one Parquet file: Spark writes folders of such names."""
    return name.endswith(SUFFIXES) and Store(folder, refusal=SourceError).exists(name)


def _list_template(store: Store, template: PathTemplate, dataset: ParquetDataset, only: tuple[str, ...] | None) -> list[SourceFile]:
    column = dataset.partition_column
    files = []
    for path, version, partition in template.list(store, only):
        file = _describe(path, version)
        if partition is not None and column is not None:
            file = replace(file, hive=(*(pair for pair in file.hive if pair[0] != column), (column, partition)))
        files.append(file)
    if not files and only is None:
        raise SourceError(f"No Parquet file matches the source {dataset.uri}. Nothing was sent. Check the path.", uri=dataset.uri)
    return files


def _describe(path: str, version: str) -> SourceFile:
    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return SourceFile(path=path, version=version, hive=tuple((column, unquote(value)) for column, _, value in pairs))
