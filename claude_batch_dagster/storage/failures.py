"""What a store's failures are to us: one table for the operating system's, one for an object store's.

obstore tells most of an object store's answers apart in the text of its message only: the HTTP status and the vendor's code stand there.
"""

import errno
import os
import re
import tempfile
from dataclasses import dataclass

from obstore.exceptions import PreconditionError

from claude_batch_dagster.core.errors import RootError, TerminalError, TransientError

PASSING_STATUSES = frozenset({408, 409, 412, 425, 429})
"""Besides every 5xx: the same request may succeed later."""
METADATA_SERVICES = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
"""Where a client looks for a machine's role once the environment names no credentials."""
CREDENTIAL_CODES = frozenset(
    {"AuthenticationFailed", "ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)
NO_BUCKET_CODES = frozenset({"ContainerNotFound", "NoSuchBucket"})

_ERRNO = re.compile(r"\(os error (\d+)\)")
_STATUS = re.compile(r"status code: (\d{3})((?: [A-Z][A-Za-z]+)*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TIMING = re.compile(r"^.* in [\d.]+\S*s(?:, after .*retry_timeout: \S+)?\s+- ")

_SPACE = ("no space is left there", "Free some space there.")
_DENIED = ("permission is denied", "Give this user the right to read and write there.")
_FILE = ("a file is where a folder should be", "Remove it, or choose another place.")
_CREDENTIALS = "Check the credentials in the environment, or the machine's role."
_LOCAL: dict[int, tuple[str, str]] = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: ("the quota is used up", "Free some space there."),
    errno.EFBIG: ("the file would be larger than is allowed there", "Raise the limit."),
    errno.EROFS: ("the file system is read-only", "Make it writable, or choose another place."),
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EEXIST: _FILE,
    errno.ENOTDIR: _FILE,
}
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Of an OSError: nothing can be written there now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What was tried.

    Attributes:
        target: The object's or the store's URI or path.
        verb: `written`, `read`, `listed`, `removed` or `opened`.
        is_local: Whether it is a folder of this machine.
        refusal: The class of a failure that does not pass by itself.
    """

    target: str
    verb: str
    is_local: bool
    refusal: type[TerminalError] = RootError


def explain_failure(attempt: Attempt, error: Exception) -> TerminalError | TransientError:
    """Return a store's failure as ours.

    Transient: an object store that does not answer, or answers 5xx, 408, 409, 412, 425 or 429. Everything else stays as it is until somebody
    does something about it, a full disk included.
    """
    if attempt.is_local:
        return _refuse(attempt, *_explain_local(error))
    text = str(error).partition("\n\nDebug source")[0]
    found, code = _STATUS.search(text), _CODE.search(text)
    status = int(found[1]) if found else None
    answer = " ".join(filter(None, (found and f"{found[1]}{found[2]}", code and code[1])))
    if any(service in text for service in METADATA_SERVICES):
        return _refuse(
            attempt,
            "the environment names no credentials and this machine has no role",
            "Set the store's credentials (AWS_ACCESS_KEY_ID, ...).",
        )
    if (code and code[1] in CREDENTIAL_CODES) or status == 401:
        return _refuse(attempt, f"its credentials are not accepted ({answer})", _CREDENTIALS)
    if status == 403:
        return _refuse(attempt, f"permission is denied ({answer})", "Give these credentials get, put, list and delete there.")
    if (code and code[1] in NO_BUCKET_CODES) or isinstance(error, FileNotFoundError):
        return _refuse(attempt, f"there is no such bucket ({answer or 'not found'})", "Make the bucket, or correct the address.")
    if status is not None and (status >= 500 or status in PASSING_STATUSES):
        return _pass(attempt, f"the object store answered {answer}")
    if isinstance(error, PreconditionError):
        return _pass(attempt, "it was changed meanwhile")
    if status is not None or "edirect without LOCATION" in text:
        return _refuse(
            attempt, f"the object store answered {answer or 'with a redirect'}", "Check the address, the region and the credentials."
        )
    reason = _TIMING.sub("", text.partition("\n")[0])
    if attempt.verb == "opened":
        return _refuse(attempt, reason, "Check the address.")
    what = "the object store does not answer" if "HTTP error" in reason else "the request to the object store failed"
    return _pass(attempt, f"{what} ({reason})")


def explain_scratch(error: OSError) -> RootError:
    """Return as ours that there is no room for temporary files."""
    folder = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")
    # Python's own words where it finds no folder to write in: all are full, read-only or not ours.
    reason = str(error.strerror) if error.errno == errno.ENOENT else _explain_local(error)[0]
    return RootError(f"Temporary files cannot be written in {folder}: {reason}. Free some space there, or set TMPDIR to another folder.")


def _explain_local(error: Exception) -> tuple[str, str]:
    text = str(error).partition("\n")[0]
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _ERRNO.search(str(error))):
        number = int(found[1])
    if number in _LOCAL:
        return _LOCAL[number]
    return (text if number is None else os.strerror(number)), "Check the path, its permissions and the free space."


def _refuse(attempt: Attempt, reason: str, remedy: str) -> TerminalError:
    consequence = _consequence(attempt.verb)
    error = RootError(f"{attempt.target} cannot be {attempt.verb}: {reason}. {consequence}. {remedy}", uri=attempt.target)
    return error if attempt.refusal is RootError else attempt.refusal(str(error), **error.context)


def _pass(attempt: Attempt, reason: str) -> TransientError:
    consequence = _consequence(attempt.verb)
    return TransientError(
        f"{attempt.target} cannot be {attempt.verb} now: {reason}. {consequence}. "
        "A worker tries again by itself; a command can be given again.",
        uri=attempt.target,
    )


def _consequence(verb: str) -> str:
    return {"opened": "Nothing was sent", "written": "What was there before is as it was"}.get(verb, "Nothing was changed")
