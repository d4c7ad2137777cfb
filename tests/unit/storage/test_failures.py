"""storage/failures.py: every failure of a store, row by row. The texts are obstore's, as it raised them against a server that answered so."""

import errno
import os

import pytest
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PermissionDeniedError, PreconditionError, UnauthenticatedError

from claude_batch_dagster.core.errors import RootError, SourceError, TransientError
from claude_batch_dagster.storage.failures import Attempt, explain_failure, explain_scratch


def answer(status: str, code: str = "", *, tries: str = "") -> str:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>secret row</Message></Error>" if code else ""
    return (
        f"Generic S3 error: Error performing PUT http://store/lake/x/a in 469.917µs{tries} - Server returned non-2xx status code: {status}: {body}"
        "\n\nDebug source:\nGeneric {\n    store: 503 Service Unavailable"
    )


TRIES = ", after 10 retries, max_retries: 10, retry_timeout: 60s "
REMOTE = [
    (PermissionDeniedError, answer("403 Forbidden", "AccessDenied"), RootError, "permission is denied (403 Forbidden AccessDenied)"),
    (GenericError, answer("403 Forbidden"), RootError, "permission is denied (403 Forbidden)"),
    (
        PermissionDeniedError,
        answer("403 Forbidden", "InvalidAccessKeyId"),
        RootError,
        "its credentials are not accepted (403 Forbidden Inv",
    ),
    (GenericError, answer("400 Bad Request", "ExpiredToken"), RootError, "its credentials are not accepted (400 Bad Request ExpiredToken)"),
    (UnauthenticatedError, answer("401 Unauthorized"), RootError, "its credentials are not accepted (401 Unauthorized)"),
    (FileNotFoundError, answer("404 Not Found", "NoSuchBucket"), RootError, "there is no such bucket (404 Not Found NoSuchBucket)"),
    (GenericError, answer("404 Not Found", "NoSuchBucket"), RootError, "there is no such bucket (404 Not Found NoSuchBucket)"),
    (GenericError, answer("400 Bad Request", "Other"), RootError, "the object store answered 400 Bad Request Other"),
    (GenericError, "Generic S3 error: Received redirect without LOCATION, this", RootError, "the object store answered with a redirect"),
    (
        GenericError,
        "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: error sending request",
        RootError,
        "the environment names no credentials",
    ),
    (GenericError, answer("503 Service Unavailable", "SlowDown", tries=TRIES), TransientError, "answered 503 Service Unavailable SlowDown"),
    (GenericError, answer("507 Insufficient Storage", tries=TRIES), TransientError, "answered 507 Insufficient Storage"),
    (GenericError, answer("429 Too Many Requests", tries=TRIES), TransientError, "answered 429 Too Many Requests"),
    (AlreadyExistsError, answer("409 Conflict", "ConditionalRequestConflict"), TransientError, "answered 409 Conflict Conditional"),
    (PreconditionError, "Precondition failure", TransientError, "it was changed meanwhile"),
    (
        GenericError,
        f"Generic S3 error: Error performing GET http://store:1/lake/x in 240.576029ms{TRIES} - HTTP error: error sending request\n\nDebug source: 403",
        TransientError,
        "the object store does not answer (HTTP error: error sending request)",
    ),
]


@pytest.mark.parametrize(("kind", "text", "becomes", "says"), REMOTE)
def test_what_an_object_store_answers_becomes_ours(kind: type[BaseError], text: str, becomes: type[Exception], says: str) -> None:
    found = explain_failure(Attempt(target="s3://lake/x/a", verb="written", is_local=False), kind(text))
    assert type(found) is becomes
    assert str(found).startswith("s3://lake/x/a cannot be written")
    assert says in str(found)
    assert "secret row" not in str(found)
    assert "What was there before is as it was" in str(found)
    assert found.context == {"uri": "s3://lake/x/a"}


LOCAL = [
    (OSError(errno.ENOSPC, "x"), "no space is left there. What was there before is as it was. Free some space there."),
    (OSError(errno.EDQUOT, "x"), "the quota is used up"),
    (OSError(errno.EFBIG, "x"), "larger than is allowed"),
    (OSError(errno.EROFS, "x"), "the file system is read-only"),
    (PermissionError(errno.EACCES, "x"), "permission is denied. What was there before is as it was. Give this user"),
    (NotADirectoryError(errno.ENOTDIR, "x"), "a file is where a folder should be"),
    (OSError(errno.EIO, "x"), f"{os.strerror(errno.EIO)}. What was there before is as it was. Check the path"),
    (GenericError("Generic LocalFileSystem error: Unable to read\nDebug: (os error 13)"), "permission is denied"),
    (GenericError("Generic LocalFileSystem error: strange"), "Generic LocalFileSystem error: strange"),
]


@pytest.mark.parametrize(("error", "says"), LOCAL)
def test_what_the_operating_system_says_becomes_ours_and_does_not_pass(error: Exception, says: str) -> None:
    found = explain_failure(Attempt(target="/data/a", verb="written", is_local=True), error)
    assert type(found) is RootError
    assert says in str(found)


def test_the_owner_of_a_store_names_what_is_refused() -> None:
    attempt = Attempt(target="s3://lake/x", verb="listed", is_local=False, refusal=SourceError)
    assert type(explain_failure(attempt, PermissionDeniedError(answer("403 Forbidden")))) is SourceError
    assert type(explain_failure(attempt, GenericError(answer("500 Internal Server Error")))) is TransientError


def test_no_room_for_temporary_files_names_where_and_what_to_set() -> None:
    assert "no space is left there. Free some space there, or set TMPDIR" in str(explain_scratch(OSError(errno.ENOSPC, "x")))
    assert "No usable temporary directory" in str(explain_scratch(FileNotFoundError(errno.ENOENT, "No usable temporary directory found")))
