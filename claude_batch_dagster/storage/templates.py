"""Paths with globs and with `{partition}`: which files they mean, and which partition each belongs to.

- `*` and `?` stay within a folder, `**` as a whole folder stands for any number of them; what a path names may be files or folders of them.
- `{partition}` is any text within one folder; `{partition:%Y/%m/%d}` is a date, whose key has the form of the partitions definition.
- A local path that exists as it is written is no pattern.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import commonpath
from pathlib import Path

from claude_batch_dagster.core.errors import SourceError, UsageError
from claude_batch_dagster.storage.store import Store

DAY_FORMAT, MINUTE_FORMAT = "%Y-%m-%d", "%Y-%m-%d-%H:%M"
"""Dagster's formats of the keys of daily, weekly, monthly, and of hourly partitions."""
DIGITS = {"Y": 4, "y": 2, "m": 2, "d": 2, "H": 2, "M": 2, "S": 2, "j": 3}
SUFFIXES = (".parquet", ".pq")
LISTED_FOLDERS = 32
"""Of so many partitions each folder is listed alone; of more the folder that they share."""
_PLACEHOLDER = re.compile(r"\{partition(?::(?P<format>[^{}]*))?\}")
_SPECIAL = re.compile(r"[*?\[]|\{partition(?::[^{}]*)?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathTemplate:
    """A path with globs, with `{partition}`, or with both.

    Attributes:
        uri: As it was written, absolute.
        folder: What stands before the first special character, to the last `/`.
        pattern: The rest.
        key_format: Of the partitions' keys, in the manner of `strftime`; None for the one that Dagster would choose.
    """

    uri: str
    folder: str
    pattern: str
    key_format: str | None = None

    @property
    def has_partitions(self) -> bool:
        """Whether it says which partition a file belongs to."""
        return _PLACEHOLDER.search(self.pattern) is not None

    def list(self, store: Store, only: Sequence[str] | None) -> list[tuple[str, str, str | None]]:
        """Return (path, version, partition) of the files below the folder that it means, sorted by path.

        Args:
            store: Of the folder.
            only: Partitions that are wanted, None for all: no more is listed than they need.
        """
        matches, wanted = self._compile(), None if only is None else frozenset(only)
        found = {}
        for prefix in self._prefixes(only):
            for path, version in store.list_versions(prefix):
                match = matches.fullmatch(path)
                if match is None or not path.endswith(SUFFIXES) or is_hidden(match["inside"] or "") or is_hidden(path.rpartition("/")[2]):
                    continue
                partition = self._key(match) if self.has_partitions else None
                if not self.has_partitions or (partition is not None and (wanted is None or partition in wanted)):
                    found[path] = version, partition
        return [(path, version, partition) for path, (version, partition) in sorted(found.items())]

    def render(self, key: str) -> str:
        """Return the path of a partition, globs as they are.

        Raises:
            SourceError: Terminal. The key is no date in the expected form, or has a `/`.
        """
        formats = [found["format"] for found in _PLACEHOLDER.finditer(self.pattern)]
        moment = self._moment(key) if any(formats) else None
        if moment is None and ("/" in key or not key):
            raise SourceError(
                f"The partition {key!r} names no file of {self.uri}: {{partition}} is the text of one folder or file, without '/'. Choose other partition keys."
            )
        return _PLACEHOLDER.sub(lambda found: key if moment is None else moment.strftime(found["format"]), self.pattern)

    def _moment(self, key: str) -> datetime:
        try:
            return datetime.strptime(key, self._key_format())  # noqa: DTZ007 - a key has no zone
        except ValueError as error:
            raise SourceError(
                f"The partition {key!r} is no date in the form {self._key_format()}, so it names no file of {self.uri}. Nothing of it was sent. "
                "Use a time partitions definition, or {partition} without a format."
            ) from error

    def _key_format(self) -> str:
        timed = any(directive in self._directives() for directive in "HMS")
        return self.key_format or (MINUTE_FORMAT if timed else DAY_FORMAT)

    def _directives(self) -> dict[str, None]:
        formats = "".join(found["format"] or "" for found in _PLACEHOLDER.finditer(self.pattern))
        return dict.fromkeys(re.findall("%(.)", formats))

    def _key(self, match: re.Match[str]) -> str | None:
        directives = [directive for directive in self._directives() if directive != "%"]
        if not directives:
            return match["partition"]
        text, form = " ".join(match[one] for one in directives), " ".join(f"%{one}" for one in directives)
        try:
            return datetime.strptime(text, form).strftime(self._key_format())  # noqa: DTZ007 - a key has no zone
        except ValueError:
            return None

    def _prefixes(self, only: Sequence[str] | None) -> Sequence[str]:
        if only is None or not self.has_partitions:
            return [""]
        prefixes = set()
        for key in only:
            try:
                rendered = self.render(key)
            except SourceError:
                # Whoever asks for its files is told.
                continue
            special = _SPECIAL.search(rendered)
            head, _, last = rendered[: special.start() if special else None].rpartition("/")
            prefixes.add(rendered if special is None and not last.endswith(SUFFIXES) else head)
        return sorted(prefixes) if len(prefixes) <= LISTED_FOLDERS else [_common_folder(prefixes)]

    def _compile(self) -> re.Pattern[str]:
        seen: set[str] = set()
        parts, at = [], 0
        for found in _PLACEHOLDER.finditer(self.pattern):
            parts += [_translate(self.pattern[at : found.start()]), _translate_placeholder(found["format"], seen)]
            at = found.end()
        return re.compile(f"{''.join(parts)}{_translate(self.pattern[at:])}(?:/(?P<inside>.+))?", re.DOTALL)


def read_template(uri: str, key_format: str | None = None) -> PathTemplate | None:
    """Return a path's template, None where it is a plain path.

    Args:
        uri: Absolute.
        key_format: Of the partitions' keys.

    Raises:
        UsageError: Terminal. It has a date's part that is not supported, or mixes dates and text.
    """
    special = _SPECIAL.search(uri)
    if special is None or ("://" not in uri and Path(uri).exists()):
        return None
    folder, _, _ = uri[: special.start()].rpartition("/")
    if "://" in uri and len(folder) <= uri.index("://") + 2:
        raise UsageError(f"The path {uri} has a glob or {{partition}} in its bucket. Nothing was sent. Name the bucket.")
    template = PathTemplate(uri=uri, folder=folder or "/", pattern=uri[len(folder) + 1 :], key_format=key_format)
    formats = [found["format"] for found in _PLACEHOLDER.finditer(template.pattern)]
    unknown = [f"%{one}" for one in template._directives() if one not in DIGITS]
    if unknown or (any(formats) and (not all(formats) or not template._directives())):
        what = f"has {unknown[0]}" if unknown else "has {partition} with a date and without one"
        raise UsageError(
            f"The path {uri} {what}. Nothing was sent. The parts of a date are %{', %'.join(DIGITS)}, as in {{partition:%Y/%m/%d}}; "
            "{partition} alone is text."
        )
    return template


def has_partition(path: str) -> bool:
    """Tell whether a path says where a partition's files are."""
    return _PLACEHOLDER.search(path) is not None


def _translate_placeholder(form: str | None, seen: set[str]) -> str:
    if form is None:
        if "partition" in seen:
            return "(?P=partition)"
        seen.add("partition")
        return "(?P<partition>[^/]+)"
    parts = []
    for text in re.findall("%.|[^%]+", form, re.DOTALL):
        directive = text[1:] if text.startswith("%") else None
        if directive is None:
            parts.append(re.escape(text))
        elif directive in seen:
            parts.append(f"(?P={directive})")
        else:
            seen.add(directive)
            parts.append(f"(?P<{directive}>[0-9]{{{DIGITS[directive]}}})")
    return "".join(parts)


def _translate(glob: str) -> str:
    parts = []
    for text in re.findall(r"(?:(?<=/)|^)\*\*/|\*+|\?|\[!?\]?[^\]/]*\]|[^*?\[]+|\[", glob):
        if text == "**/":
            parts.append("(?:[^/]+/)*")
        elif text.startswith("*"):
            parts.append("[^/]*")
        elif text == "?":
            parts.append("[^/]")
        elif len(text) > 1 and text.startswith("[") and text.endswith("]"):
            parts.append("[" + text[1:-1].replace("\\", r"\\").replace("!", "^", 1 if text[1] == "!" else 0) + "]")
        else:
            parts.append(re.escape(text))
    return "".join(parts)


def is_hidden(path: str) -> bool:
    """Tell whether a path has a part that is nobody's data, as in a folder that is listed whole."""
    return any(part.startswith(("_", ".")) and "=" not in part for part in path.split("/"))


def _common_folder(folders: set[str]) -> str:
    return "" if "" in folders else commonpath(folders)
