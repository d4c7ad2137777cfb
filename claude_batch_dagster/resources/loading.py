"""What an argument's annotation makes of published files; optional libraries are imported when one of theirs is asked for."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg

from claude_batch_dagster.core.errors import OutputError

if TYPE_CHECKING:
    import pyarrow.dataset as ds

LOADABLE = "pandas.DataFrame, polars.DataFrame, polars.LazyFrame, pyarrow.Table, pyarrow.dataset.Dataset and duckdb.DuckDBPyRelation"
Convert = Callable[["ds.Dataset"], Any]


def choose_conversion(wanted: Any, asset_key: dg.AssetKey) -> Convert:
    """Return what makes a dataset into what an annotation says.

    Args:
        wanted: The annotation; `Any` for none.
        asset_key: For messages.

    Raises:
        OutputError: Terminal. The annotation is none of those that work, or its library is not installed.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    library, name = str(getattr(wanted, "__module__", "")).partition(".")[0], getattr(wanted, "__name__", str(wanted))
    if wanted is ds.Dataset:
        return lambda dataset: dataset
    if wanted is pa.Table or wanted is Any:
        return lambda dataset: dataset.to_table()
    try:
        match library, name:
            case "pandas", "DataFrame":
                return lambda dataset: dataset.to_table().to_pandas()
            case "polars", "DataFrame":
                return _to_polars()
            case "polars", "LazyFrame":
                return _to_lazy()
            case (("duckdb" | "_duckdb"), "DuckDBPyRelation"):
                return _to_duckdb()
            case _:
                pass
    except ImportError as error:
        library = library.removeprefix("_")
        raise OutputError(
            f"{asset_key.to_user_string()} cannot be loaded as {library}.{name}: {library} cannot be imported ({error}). Nothing was loaded. "
            f"Install it: pip install 'claude-batch-dagster[{library}]'.",
        ) from error
    raise OutputError(
        f"{asset_key.to_user_string()} cannot be loaded as {name}; {LOADABLE} work. Nothing was loaded. Annotate the argument with one of them."
    )


def _to_polars() -> Convert:
    import polars as pl

    return lambda dataset: pl.from_arrow(dataset.to_table())


def _to_lazy() -> Convert:
    import polars as pl

    def scan(dataset: "ds.Dataset") -> Any:
        import pyarrow.dataset as ds
        import pyarrow.fs as fs

        if not isinstance(dataset.filesystem, fs.LocalFileSystem):
            # Polars would reach the object store by credentials of its own.
            return pl.scan_pyarrow_dataset(dataset)
        frames = []
        for file in dataset.get_fragments():
            # Polars' own reading of hive folders gives wrong rows where a path has a `*` in it (2.1.0, measured).
            keys = ds.get_partition_keys(file.partition_expression)
            columns = {name: pl.lit(value, pl.String) for name, value in keys.items()}
            frames.append(pl.scan_parquet(file.path, glob=False, hive_partitioning=False).with_columns(**columns))
        return pl.concat(frames, how="diagonal")

    return scan


def _to_duckdb() -> Convert:
    import duckdb

    # The default connection: relations of two cannot be joined, and `duckdb.sql` finds only those of this one.
    return lambda dataset: duckdb.from_arrow(dataset)
