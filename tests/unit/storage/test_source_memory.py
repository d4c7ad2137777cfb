"""A row group as large as a file costs a reader no memory. Judged by what Arrow held at its peak, in a process that does nothing else."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 32_768
TEXT_BYTES = 1_024
READ = """
import sys
import pyarrow as pa
from claude_batch_dagster.storage.dataset import ParquetDataset
from claude_batch_dagster.storage.source import Source

source = Source(ParquetDataset(path=sys.argv[1], key="id"))
rows = sum(piece.num_rows for piece in source.pieces(source.files[0], ["id", "text"]))
print(rows, pa.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_row_group_of_a_whole_file_is_never_held(tmp_path: Path, compression: str) -> None:
    # Random, so that what is compressed is no smaller.
    numbers = random.Random(1)
    texts = [numbers.randbytes(TEXT_BYTES // 2).hex() for _ in range(ROWS)]
    path = tmp_path / "r.parquet"
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), path, row_group_size=ROWS, compression=compression, use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    read = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    rows, peak = map(int, read.stdout.split())
    assert rows == ROWS
    assert peak < ROWS * TEXT_BYTES / 3
