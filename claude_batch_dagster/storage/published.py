"""The files of an output, by partition, and what they say they come from."""

from urllib.parse import unquote

import msgspec
import pyarrow.parquet as pq

from claude_batch_dagster.core.errors import OutputError
from claude_batch_dagster.storage.output import METADATA_KEY
from claude_batch_dagster.storage.store import Store


def list_published(output: Store) -> dict[str | None, str]:
    """Return an output's files by partition key; None stands for the one file of an output without partitions."""
    found: dict[str | None, str] = {}
    for path in output.list(""):
        folder, _, name = path.rpartition("/")
        if name.endswith(".parquet") and "/" not in folder:
            found[unquote(folder.partition("=")[2]) if folder else None] = path
    return found


def read_source(output: Store, path: str) -> str:
    """Return the source that a published file names.

    Raises:
        OutputError: Terminal. The file is not one of ours.
    """
    with pq.ParquetFile(output.open(path)) as parquet:
        facts = (parquet.metadata.metadata or {}).get(METADATA_KEY.encode())
    if facts is None:
        raise OutputError(f"{output.uri}/{path} does not say what it was made from: it is no output of this tool. Materialize it again.")
    return str(msgspec.json.decode(facts)["source"])
