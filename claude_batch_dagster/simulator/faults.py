"""The named fault switches: one table says what each does, one board says which are on.

A switch is `NAME`, `NAME=N` or `NAME=all`. Call faults take `@VERB` after the name (create, get, list, cancel, delete, results,
message, count_tokens, models or any; without it: create). Request faults are drawn when a batch is created and stored with it, by a
hash of the fault's name and the whole custom_id, so that a restart changes nothing and a re-asked request (new tag) draws anew; with
`@message` they spoil the next N answers of the Messages API instead, and no batch.
The board itself is memory: a restart begins with the switches of its command line.
"""

import heapq
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from claude_batch_dagster.simulator.wire import WireError, draw

ALL = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One switch.

    `kind`: before (the call does nothing), after (it does its work first), upload (before a create's body is read), results, request
    (drawn per request), or setting.
    """

    kind: str
    says: str
    status: int = 0
    """The HTTP status of a before or after fault; 0 drops the connection without a reply."""
    error_type: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    default: float = 1

    def error(self) -> WireError:
        """The reply of a before or after fault."""
        return WireError(
            self.status, self.error_type, self.message, headers=self.headers, details={"error_code": self.code} if self.code else None
        )


def _reply(says: str, status: int, error_type: str, message: str, *, kind: str = "before", code: str = "", **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(kind=kind, says=says, status=status, error_type=error_type, message=message, headers=named, code=code)


def _request(says: str) -> Fault:
    return Fault(kind="request", says=says)


_LIMIT = "This request would exceed your organization's rate limit. Please try again later."
_SPEND = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."

FAULTS: Mapping[str, Fault] = {
    # Calls, N times (default 1). But for drop-upload the whole body is read first.
    "drop-before": Fault(kind="before", says="the connection is dropped without a reply, nothing is done"),
    "drop-upload": Fault(kind="upload", says="the connection is dropped in the middle of a create's body, nothing is done"),
    "accept-then-drop": Fault(kind="after", says="the work is done, the connection is dropped without a reply"),
    "error-500-before": _reply("500, nothing is done", 500, "api_error", "Internal server error"),
    "error-500-after": _reply("the work is done, 500", 500, "api_error", "Internal server error", kind="after"),
    "error-504-after": _reply("the work is done, 504", 504, "timeout_error", "The request timed out", kind="after"),
    "garbled-after": Fault(kind="after", says="the work is done, 200 with a body that is not JSON", status=200),
    "429": _reply("rate limit with retry-after: 1", 429, "rate_limit_error", _LIMIT, retry_after="1"),
    "429-bare": _reply("rate limit without retry-after", 429, "rate_limit_error", _LIMIT),
    "529": _reply("overloaded", 529, "overloaded_error", "Overloaded"),
    "402": _reply("billing error", 402, "billing_error", "There is an issue with your billing."),
    "403": _reply("permission error", 403, "permission_error", "Your API key does not have permission to use the specified resource."),
    "408": _reply("timeout, nothing is done", 408, "timeout_error", "The request timed out"),
    "409": _reply("conflict, nothing is done", 409, "conflict_error", "The request conflicts with another one"),
    "413": _reply("too large, nothing is done", 413, "request_too_large", "Request exceeds the maximum size"),
    "307": _reply("redirect to the same address, nothing is done", 307, "api_error", "Moved", location=""),
    "spend-limit": _reply("own spend limit: a 400 known by its text", 400, "invalid_request_error", _SPEND),
    "spend-cap": _reply("spend cap: 429 with a code", 429, "rate_limit_error", _SPEND, code="enforced_spend_limit_reached"),
    "cut-results": Fault(kind="results", says="a results download stops in mid-line, N times"),
    # Requests: N < 1 is the share of every batch from now on, N >= 1 that many requests in all, `all` every one.
    "expire": _request("the request expires"),
    "errored-api": _request("errored with api_error"),
    "errored-overloaded": _request("errored with overloaded_error"),
    "errored-timeout": _request("errored with timeout_error"),
    "truncated": _request("stops at max_tokens with half of its text"),
    "refusal": _request("succeeded with stop_reason refusal and no text"),
    "pause": _request("succeeded with stop_reason pause_turn"),
    "invalid": _request("a structured answer breaks its schema"),
    "enum-case": _request("strings of an enum come in the wrong case"),
    "surrogate": _request("the answer holds a lone surrogate escape"),
    "unknown-type": _request("result.type is a word that nobody knows"),
    "missing-result": _request("the line is missing (it counts as before)"),
    "duplicate-result": _request("the line comes twice"),
    "foreign-result": _request("one more line follows, of a custom_id that nobody sent"),
    # Settings, until cleared.
    "401-from": Fault(kind="setting", says="after N more calls every key is revoked (default 0)", default=0),
    "slow-upload": Fault(kind="setting", says="a create's body takes N more seconds to be read (default 2)", default=2),
    "slow-batch": Fault(kind="setting", says="a batch takes N more seconds to end (default 600)", default=600),
    "hold": Fault(kind="setting", says="no batch from the Nth on (default 1) ends while this is on; a canceled one does"),
    "long-answers": Fault(kind="setting", says="an answer needs N tokens: a smaller max_tokens cuts it (default 1000)", default=1000),
    "list-lag": Fault(kind="setting", says="a batch is listed N seconds after its creation (default 5)", default=5),
    "archive": Fault(kind="setting", says="an ended batch is archived N seconds after its creation (default 0)", default=0),
    "clock-skew": Fault(kind="setting", says="the simulator's clock is N seconds ahead (default 3600)", default=3600),
    "queue-limit": Fault(kind="setting", says="a create that brings more than N unfinished requests gets a 429", default=100_000),
    "strict-create": Fault(kind="setting", says="invalid params refuse the batch at create, not the request at its end"),
    "model-not-found": Fault(kind="setting", says="an unknown model is errored with not_found_error in the results"),
}

VERBS = frozenset({"create", "get", "list", "cancel", "delete", "results", "message", "count_tokens", "models", "any"})


SPOILING_FAULTS = frozenset({"truncated", "refusal", "pause", "invalid", "enum-case", "surrogate"})
"""Request faults that change an answer."""


def parse_switch(text: str) -> tuple[str, float | None]:
    """`NAME` or `NAME=N` as name and number; None where the default holds.

    Raises:
        ValueError: an unknown name or verb, or an N that is not a number or `all`.
    """
    name, equals, number = text.partition("=")
    base, at, verb = name.partition("@")
    fault = FAULTS.get(base)
    if fault is None:
        raise ValueError(f"Unknown fault {base!r}. Known are: {', '.join(FAULTS)}.")
    if at and not ((verb in VERBS and fault.kind in {"before", "after"}) or (verb == "message" and base in SPOILING_FAULTS)):
        raise ValueError(f"Fault {base!r} cannot be switched on for {verb!r}.")
    if not equals:
        return name, None
    if number == "all":
        return name, ALL
    try:
        value = float(number)
    except ValueError:
        raise ValueError(f"Fault {name!r} wants a number or 'all', not {number!r}.") from None
    if not value >= 0 and fault is not FAULTS["clock-skew"]:
        raise ValueError(f"Fault {name!r} wants a number of at least 0, not {number!r}.")
    return name, value


class FaultBoard:
    """Which faults are on, and how often they still strike. Safe to use from several threads."""

    def __init__(self, switches: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, float] = {}
        for switch in switches:
            self.switch_on(switch)

    def switch_on(self, switch: str) -> None:
        """Turn `NAME[=N]` on, or give it a new N.

        Raises:
            ValueError: see `parse_switch`.
        """
        name, number = parse_switch(switch)
        with self._lock:
            self._left[name] = FAULTS[name.partition("@")[0]].default if number is None else number

    def clear(self, name: str | None = None) -> None:
        """Turn one fault off, or all."""
        with self._lock:
            if name is None:
                self._left.clear()
            else:
                self._left.pop(name, None)

    def active(self) -> dict[str, float | str]:
        """What is on, with what is left of it; `all` for no end."""
        with self._lock:
            return {name: "all" if left == ALL else left for name, left in self._left.items()}

    def setting(self, name: str) -> float | None:
        """The value of a setting, None when it is off."""
        with self._lock:
            return self._left.get(name)

    def strike(self, kind: str, verb: str) -> Fault | None:
        """The fault of this kind that hits this call, one use of which is spent; None for none."""
        with self._lock:
            for name in self._left:
                base, at, target = name.partition("@")
                fault = FAULTS[base]
                wanted = target if at else "results" if kind == "results" else "create"
                if fault.kind == kind and wanted in (verb, "any"):
                    self._spend(name)
                    return fault
        return None

    def is_revoked(self) -> bool:
        """Whether `401-from` has reached its end; every call counts."""
        with self._lock:
            left = self._left.get("401-from")
            if left is None:
                return False
            self._left["401-from"] = max(0.0, left - 1)
            return left < 1

    def draw_requests(self, custom_ids: list[str]) -> dict[str, float]:
        """The request faults of a new batch, as thresholds for `is_hit`; spends what is counted."""
        thresholds: dict[str, float] = {}
        with self._lock:
            for name, left in list(self._left.items()):
                if "@" in name or FAULTS[name].kind != "request":
                    continue
                if left < 1:
                    thresholds[name] = left
                elif left == ALL:
                    thresholds[name] = 1.0
                else:
                    lowest = heapq.nsmallest(int(left), (draw(name, custom_id) for custom_id in custom_ids))
                    # The smallest step above the last one that is hit: draws are multiples of 2**-48.
                    thresholds[name] = lowest[-1] + 2**-48
                    self._left[name] = left - len(lowest)
                    if self._left[name] < 1:
                        del self._left[name]
        return thresholds

    def draw_message(self) -> frozenset[str]:
        """The faults that spoil this answer of the Messages API, one use of each is spent."""
        with self._lock:
            found = [name for name in self._left if name.endswith("@message") and name.partition("@")[0] in SPOILING_FAULTS]
            for name in found:
                self._spend(name)
        return frozenset(name.partition("@")[0] for name in found)

    def _spend(self, name: str) -> None:
        if self._left[name] > 1:
            self._left[name] -= 1
        else:
            del self._left[name]


def is_hit(thresholds: Mapping[str, float], name: str, custom_id: str) -> bool:
    """Whether a batch's fault strikes this request."""
    threshold = thresholds.get(name)
    return threshold is not None and draw(name, custom_id) < threshold
