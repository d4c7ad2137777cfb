"""One folder of objects, local or s3://, gs://, az://: the only way in which records and data are written.

- Atomic: a reader sees an object whole or not at all.
- Put-if-absent: of any number of writers exactly one wins, and each learns whether it was the one.
- Visible: what was written is in the next get and the next list of every process.
- Names: the part before the first `/` is the kind, which names the fault points (`put:log.before`, `list:log.after`).
"""

import builtins
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, ObjectStore, from_url

from claude_batch_dagster.core.errors import RootError, TransientError
from claude_batch_dagster.fault_points import reach

if TYPE_CHECKING:
    from obstore import ObjectMeta

READ_CHUNK_BYTES = 4 << 20


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
    """

    def __init__(self, uri: str) -> None:
        self.uri = absolute_uri(uri)
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
            obstore.put(self._store(), path, content)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        """Write an object that does not exist yet; return whether this call did."""
        with self._writing(path):
            try:
                obstore.put(self._store(), path, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def put_file(self, path: str, file: Path) -> None:
        """Write a local file's content as an object, replacing it whole."""
        with self._writing(path):
            obstore.put(self._store(), path, file)

    def get(self, path: str) -> bytes | None:
        """Return an object's content, None where there is no such object."""
        reach(f"get:{_kind(path)}.before")
        if self._is_absent:
            return None
        try:
            return bytes(obstore.get(self._store(), path).bytes())
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._failed("read", path, error) from error

    def stream(self, path: str, chunk_bytes: int = READ_CHUNK_BYTES) -> Iterator[bytes]:
        """Yield an object's content in chunks; raise FileNotFoundError where there is no such object."""
        for chunk in obstore.get(self._store(), path).stream(min_chunk_size=chunk_bytes):
            yield bytes(chunk)

    def exists(self, path: str) -> bool:
        """Tell whether an object exists."""
        if self._is_absent:
            return False
        try:
            obstore.head(self._store(), path)
        except FileNotFoundError:
            return False
        return True

    def version(self, path: str) -> str:
        """Return what changes when the object does; raise FileNotFoundError where there is no such object."""
        return _version_of(obstore.head(self._store(), path))

    def list(self, prefix: str) -> "builtins.list[str]":
        """Return the paths of all objects below a folder, sorted."""
        return [path for path, _ in self.list_versions(prefix)]

    def list_versions(self, prefix: str) -> "builtins.list[tuple[str, str]]":
        """Return (path, version) of all objects below a folder, sorted by path; a version changes when its object does."""
        reach(f"list:{_kind(prefix)}.before")
        found = []
        if self.folder is None or (self.folder / prefix).is_dir():
            try:
                found = sorted((entry["path"], _version_of(entry)) for page in obstore.list(self._store(), prefix) for entry in page)
            except BaseError as error:
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

    def open(self, path: str) -> BinaryIO | Path:
        """Return something that pyarrow reads at random: a local path, or a seekable reader of the object."""
        if self.folder is not None:
            return self.folder / path
        return cast(BinaryIO, obstore.open_reader(self._store(), path, buffer_size=1 << 20))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a local folder for files that are being made; it is gone afterwards."""
        folder = Path(tempfile.mkdtemp(prefix="claude-batch-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

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
                self._objects = LocalStore(prefix=self.folder, mkdir=True) if self.folder else from_url(self.uri)
            except (BaseError, OSError, ValueError) as error:
                raise self._failed("opened", "", error) from error
        return self._objects

    def _failed(self, verb: str, path: str, error: Exception) -> RootError | TransientError:
        reason = str(error).partition("\n")[0]
        text = f"{join_uri(self.uri, path) if path else self.uri} cannot be {verb}: {reason}."
        may_pass = self._objects is not None and self.folder is None
        if may_pass and isinstance(error, GenericError) and not isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            return TransientError(f"{text} It is tried again. Check that the object store is reachable.", uri=self.uri)
        consequence = "Nothing was sent." if verb == "opened" else "What was there before is as it was."
        return RootError(f"{text} {consequence} Check the path, its permissions and the free space.", uri=self.uri)


def _version_of(entry: "ObjectMeta") -> str:
    return f"{entry['e_tag']}-{entry['size']}"


def _kind(path: str) -> str:
    return path.partition("/")[0]
