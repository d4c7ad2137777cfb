"""One folder of objects, local or s3://, gs://, az://: the only way in which records and data are written.

- Atomic: a reader sees an object whole or not at all.
- Put-if-absent: of any number of writers at most one is told that it wrote.
- Visible: what was written is in the next get and the next list of every process.
- Durable: what was written survives the death of the process, and a power loss.
- Failures: a RootError (or the class that the owner names) where somebody has to do something, a TransientError where time may help.
- Names: the part before the first `/` is the kind, which names the fault points (`put:log.before`, `list:log.after`).
"""

import builtins
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from claude_batch_dagster.core.errors import RootError, TerminalError, TransientError
from claude_batch_dagster.fault_points import reach
from claude_batch_dagster.storage.disk import forget_pages, part_beside, remove_stale_parts, write_file
from claude_batch_dagster.storage.failures import NO_ROOM, Attempt, explain_failure, explain_scratch

if TYPE_CHECKING:
    from obstore import ObjectMeta, ReadableFile
    from obstore.store import RetryConfig

READ_CHUNK_BYTES = 4 << 20
READ_AHEAD_BYTES = 1 << 20
RETRIES: "RetryConfig" = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}
"""The client's own, for 5xx and lost connections; what lasts longer is for a worker's activity, or a person, to try again."""
CONFLICT_TRIES = 5
CONFLICT_PAUSE_S = 0.2


def absolute_uri(uri: str) -> str:
    """Return a URI as it is, a local path as an absolute path without a trailing slash."""
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())


def join_uri(uri: str, *parts: str) -> str:
    """Return a URI or path below another."""
    return "/".join((uri.rstrip("/"), *parts))


class Store:
    """A folder of objects. Paths are relative, with `/`.

    Args:
        uri: A local path, or an object store's URL with a prefix. A local folder is made by the first write.
        refusal: The class of what is raised where somebody has to do something.

    Raises:
        RootError: Terminal (or `refusal`). Permission, credentials, no such bucket, no space, read-only; from every method.
        TransientError: An object store that does not answer or cannot now; from every method.
    """

    def __init__(self, uri: str, *, refusal: type[TerminalError] = RootError) -> None:
        self.uri = absolute_uri(uri)
        self._refusal = refusal
        self._objects: ObjectStore | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, None for an object store."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def _is_absent(self) -> bool:
        """Whether a local folder is not there yet: reading must not make it."""
        return self.folder is not None and not self.folder.is_dir()

    def put(self, path: str, content: bytes) -> None:
        """Write an object, replacing it whole."""
        with self._writing(path):
            if self.folder is not None:
                write_file(self.folder / path, content, replace=True)
            else:
                obstore.put(self._store(), path, content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write an object that does not exist yet; return whether this call did.

        False may also mean that an object store's client repeated a put that had succeeded: who must know for certain reads what is there.
        """
        with self._writing(path):
            if self.folder is not None:
                return write_file(self.folder / path, content, replace=False)
            return self._create(path, content)

    def put_file(self, path: str, file: Path) -> None:
        """Write a local file's content as an object, replacing it whole."""
        with self._writing(path):
            if self.folder is not None:
                write_file(self.folder / path, file, replace=True)
                remove_stale_parts((self.folder / path).parent)
            else:
                obstore.put(self._store(), path, file)

    @contextmanager
    def putting(self, path: str) -> Iterator[Path]:
        """Give where a local file is made that becomes an object in the end, in a local store without a copy; nothing of it stays on failure."""
        with self.scratch() as scratch:
            file = self.draft(path, scratch)
            try:
                with self.drafting(path):
                    yield file
                self.put_file(path, file)
            finally:
                with suppress(OSError):
                    file.unlink()

    def draft(self, path: str, scratch: Path) -> Path:
        """Return where a large file is made that becomes an object of this folder: beside its place, so that it need not be copied.

        Args:
            path: Of any object of the folder; `put_file` gives the file its name.
            scratch: Where it is made for an object store.
        """
        if self.folder is None:
            return scratch / Path(path).name
        with self.drafting(path):
            return part_beside(self.folder / path)

    @contextmanager
    def drafting(self, path: str) -> Iterator[None]:
        """Explain what fails while a file of `draft` is written, as every other write to this store is explained."""
        try:
            yield
        except OSError as error:
            if self.folder is None:
                raise
            raise self._failed("written", path, error) from error

    def get(self, path: str) -> bytes | None:
        """Return an object's content, None where there is no such object."""
        reach(f"get:{_kind(path)}.before")
        if self._is_absent:
            return None
        try:
            with self._reading(path):
                return bytes(obstore.get(self._store(), path).bytes())
        except FileNotFoundError:
            return None

    def stream(self, path: str, chunk_bytes: int = READ_CHUNK_BYTES, *, forget: bool = False) -> Iterator[bytes]:
        """Yield an object's content in chunks; raise FileNotFoundError where there is no such object.

        Args:
            path: Of the object.
            chunk_bytes: Of each but the last.
            forget: Nobody reads it again soon: a local file does not stay in the page cache.
        """
        if self.folder is not None:
            yield from self._stream_file(path, chunk_bytes, forget=forget)
            return
        with self._reading(path):
            entry = obstore.head(self._store(), path)
        # A request for each chunk: one for all would time out where its reader is slow, and has to be read again from its beginning.
        for start in range(0, entry["size"], chunk_bytes):
            end = min(start + chunk_bytes, entry["size"])
            with self._reading(path):
                chunk = bytes(obstore.get(self._store(), path, options={"range": (start, end), "if_match": entry["e_tag"]}).bytes())
            yield chunk

    def exists(self, path: str) -> bool:
        """Tell whether an object exists."""
        if self._is_absent:
            return False
        try:
            with self._reading(path):
                obstore.head(self._store(), path)
        except FileNotFoundError:
            return False
        return True

    def version(self, path: str) -> str:
        """Return what changes when the object does; raise FileNotFoundError where there is no such object."""
        if self._is_absent:
            raise FileNotFoundError(path)
        with self._reading(path):
            return _version_of(obstore.head(self._store(), path), is_local=self.folder is not None)

    def list(self, prefix: str) -> "builtins.list[str]":
        """Return the paths of all objects below a folder, sorted."""
        return [path for path, _ in self.list_versions(prefix)]

    def list_versions(self, prefix: str) -> "builtins.list[tuple[str, str]]":
        """Return (path, version) of all objects below a folder, sorted by path; a version changes when its object does."""
        reach(f"list:{_kind(prefix)}.before")
        found = []
        if self.folder is None or (self.folder / prefix).is_dir():
            try:
                found = sorted(
                    (entry["path"], _version_of(entry, is_local=self.folder is not None))
                    for page in obstore.list(self._store(), prefix)
                    for entry in page
                )
            except (BaseError, OSError) as error:
                raise self._failed("listed", prefix, error) from error
        reach(f"list:{_kind(prefix)}.after")
        return found

    def delete(self, path: str) -> None:
        """Remove an object; none is no error."""
        if self._is_absent:
            return
        try:
            obstore.delete(self._store(), path)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise self._failed("removed", path, error) from error

    def open(self, path: str) -> BinaryIO | Path:
        """Return something that pyarrow reads at random: a local path, or a seekable reader of the object.

        Raises:
            FileNotFoundError: There is no such object; of a local one the reader learns it.
        """
        if self.folder is not None:
            return self.folder / path
        with self._reading(path):
            return cast(BinaryIO, _ObjectReader(self, path, obstore.open_reader(self._store(), path, buffer_size=READ_AHEAD_BYTES)))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a local folder for files that are being made; it is gone afterwards.

        Raises:
            RootError: Terminal. There is no room for temporary files.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix="claude-batch-"))
        except OSError as error:
            raise explain_scratch(error) from error
        try:
            yield folder
        except OSError as error:
            if error.errno in NO_ROOM:
                raise explain_scratch(error) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _create(self, path: str, content: bytes) -> bool:
        for _ in range(CONFLICT_TRIES):
            try:
                obstore.put(self._store(), path, content, mode="create")
                return True
            except AlreadyExistsError as error:
                # S3 also answers so (409) where another write of this name was under way, which may come to nothing.
                conflict = error
            if self.exists(path):
                return False
            time.sleep(CONFLICT_PAUSE_S)
        raise TransientError(
            f"{join_uri(self.uri, path)} cannot be written now: others write it and do not succeed. Nothing was changed. "
            "A worker tries again by itself; a command can be given again."
        ) from conflict

    def _stream_file(self, path: str, chunk_bytes: int, *, forget: bool) -> Iterator[bytes]:
        assert self.folder is not None, "the store is local"
        if self._is_absent:
            raise FileNotFoundError(path)
        with self._reading(path), (self.folder / path).open("rb") as file:
            while chunk := file.read(chunk_bytes):
                if forget:
                    forget_pages(file, file.tell())
                yield chunk

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise self._failed("read", path, error) from error

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        reach(f"put:{_kind(path)}.before")
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._failed("written", path, error) from error
        reach(f"put:{_kind(path)}.after")

    def _store(self) -> ObjectStore:
        if self._objects is None:
            try:
                self._objects = LocalStore(prefix=self.folder) if self.folder else from_url(self.uri, retry_config=RETRIES)
            except (BaseError, OSError, ValueError) as error:
                raise self._failed("opened", "", error) from error
        return self._objects

    def _failed(self, verb: str, path: str, error: Exception) -> TerminalError | TransientError:
        target = join_uri(self.uri, path) if path else self.uri
        return explain_failure(Attempt(target=target, verb=verb, is_local=self.folder is not None, refusal=self._refusal), error)


class _ObjectReader(io.RawIOBase):
    """obstore's reader of an object, whose failures are ours."""

    def __init__(self, store: Store, path: str, reader: "ReadableFile") -> None:
        self._store = store
        self._path = path
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._reader.seek(offset, whence)

    def tell(self) -> int:
        return self._reader.tell()

    def read(self, size: int = -1, /) -> bytes:
        with self._store._reading(self._path):
            return bytes(self._reader.read(None if size < 0 else size))


def _version_of(entry: "ObjectMeta", *, is_local: bool) -> str:
    # Some stores quote the tag of one object and not of a listed one; of a local file it begins with the inode, which no copy keeps.
    tag = (entry["e_tag"] or "").strip('"')
    return f"{tag.partition('-')[2] if is_local else tag}-{entry['size']}"


def _kind(path: str) -> str:
    return path.partition("/")[0]
