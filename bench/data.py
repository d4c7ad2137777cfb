"""The source data: {id, category, text of 200 to 2,000 characters, about 5 % of the texts twice}, the same for the same size."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import made_once

FILE_ROWS = 1_000_000
GROUP_ROWS = 65_536
POOL_CHARS = 8_000_000
LEAST_CHARS, MOST_CHARS = 200, 2_000
TWICE = 0.05
CATEGORIES = ("kitchen", "garden", "books", "music", "outdoor", "toys", "office", "health", "games", "pets", "tools", "travel")
WORDS = (
    "the a this my our one it that they we is was has came works broke fits holds keeps looks feels arrived lasted leaked after before with "
    "without for from under over about tent kettle lamp knife book pump bag chair phone cable shoe jacket bottle stove radio camera drawer "
    "table brush garden winter summer rain morning week month year price shop parcel service refund manual screw battery handle lid strap "
    "zipper colour size weight noise smell light dark heavy small large sturdy cheap careful honest quick slow warm cold wet dry broken new "
    "old second first last very quite really hardly never always again still only twice because although however while until children "
    "friend neighbour daughter company customer box paper plastic steel wood cotton glass water coffee soup bread quality café naïve Größe "
    "\"perfect\" don't can't C:\\temp\\files 5€ ½ 100% https://shop.example/item?id=42&x=<1>"
).split()
SENTENCE_ENDS = (". ", ". ", ". ", "! ", "? ", ".\n", " - ", "; ")


def make_source(rows: int, work: Path) -> Path:
    """Return the folder of a source of so many rows; made once, in files of a million rows.

    Every file holds the same texts; from the second on the category carries the file's number, so that no request repeats.
    """
    folder = work / f"source-{rows}"
    with made_once(folder) as making:
        if making is None:
            return folder
        for number, start in enumerate(range(0, rows, FILE_ROWS)):
            _write_file(making / f"part-{number:03}.parquet", number, start, min(FILE_ROWS, rows - start))
    return folder


def source_files(folder: Path) -> list[Path]:
    """Return a source's files in order."""
    return sorted(folder.glob("*.parquet"))


def make_answers(count: int) -> list[bytes]:
    """Return answers to the bench's task, as JSON; each differs."""
    rng = random.Random(4_096)
    answers = []
    for number in range(count):
        summary = " ".join(rng.choices(WORDS, k=rng.randint(20, 40)))
        answers.append(
            json.dumps({"summary": f"{number}: {summary}.", "label": rng.choice(CATEGORIES), "score": rng.randint(0, 10)}).encode()
        )
    return answers


def _write_file(path: Path, number: int, start: int, rows: int) -> None:
    pool = make_pool()
    rng = np.random.default_rng(1)
    schema = pa.schema([("id", pa.string()), ("category", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        for at in range(0, rows, GROUP_ROWS):
            count = min(GROUP_ROWS, rows - at)
            categories = [CATEGORIES[place] for place in rng.integers(0, len(CATEGORIES), count).tolist()]
            if number:
                categories = [f"{category}-{number}" for category in categories]
            texts = _cut_texts(pool, rng, count)
            writer.write_table(
                pa.table([[f"r{row:08}" for row in range(start + at, start + at + count)], categories, texts], schema=schema)
            )


def _cut_texts(pool: str, rng: np.random.Generator, count: int) -> list[str]:
    begins = rng.integers(0, len(pool) - MOST_CHARS, count).tolist()
    lengths = rng.integers(LEAST_CHARS, MOST_CHARS + 1, count).tolist()
    texts = [pool[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]
    for place in np.flatnonzero(rng.random(count) < TWICE).tolist():
        texts[place] = texts[place // 2]
    return texts


def make_pool() -> str:
    """Return a text of eight million characters."""
    rng = random.Random(1)
    parts: list[str] = []
    size = 0
    while size < POOL_CHARS:
        sentence = " ".join(rng.choices(WORDS, k=rng.randint(4, 18))).capitalize() + rng.choice(SENTENCE_ENDS)
        parts.append(sentence)
        size += len(sentence)
    return "".join(parts)
