"""The worker's side of `claude-batch doctor`: the vendor, the workspace, the models, the clock, the root as this worker sees it.

Looks only: nothing is pinned, nothing costs, and whatever is down is a finding. Every wait is bounded, all of them end within 25 s.
"""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

from claude_batch_dagster.core.contract import Finding, Health
from claude_batch_dagster.core.errand_contract import DoctorInput, DoctorReport
from claude_batch_dagster.core.errors import ClaudeBatchError, CredentialsError
from claude_batch_dagster.core.records import WorkspaceRecord
from claude_batch_dagster.storage.plans import read_root
from claude_batch_dagster.storage.probe import (
    PRODUCT,
    call_within,
    describe_versions,
    examine_space,
    read_versions,
    remove_token,
    write_token,
)
from claude_batch_dagster.storage.store import Store
from temporal_worker.vendor import Model, VendorReply

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

DISTRIBUTIONS = ("anthropic", "temporalio", PRODUCT)
SKEW_LIMIT_S = 30.0
ROOT_TIMEOUT_S = 8.0
VENDOR_TIMEOUT_S = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Examiner:
    """Looks at what a run would need.

    Attributes:
        batches: With short timeouts: a person waits.
        clock: Now, aware; compared with the vendor's.
    """

    open_store: Callable[[str], Store]
    batches: "Batches"
    clock: Callable[[], datetime]

    def examine(self, ask: DoctorInput) -> DoctorReport:
        """Return the findings; never raises for what is broken."""
        store = self.open_store(ask.root)
        versions = read_versions(*DISTRIBUTIONS)
        worker = Finding(name="worker", status=Health.OK, detail=f"on {socket.gethostname()}: {describe_versions(versions)}")
        root = call_within(ROOT_TIMEOUT_S, lambda: _examine_root(ask, store)) or _RootView(
            finding=_unusable_root(f"{store.uri} did not answer within {ROOT_TIMEOUT_S:.0f} s.")
        )
        vendor = self._examine_vendor_within(VENDOR_TIMEOUT_S, ask, root)
        return DoctorReport(findings=(worker, *vendor, root.finding, *examine_space("worker disk", store.folder)), versions=versions)

    def _examine_vendor_within(self, timeout_s: float, ask: DoctorInput, root: "_RootView") -> list[Finding]:
        found: list[Finding] = []

        def look() -> bool:
            for finding in self._examine_vendor(ask, root):
                found.append(finding)
            return True

        if call_within(timeout_s, look):
            return found
        return [*found, _no_reply("api", f"{self.batches.base_url} did not answer everything within {timeout_s:.0f} s.")]

    def _examine_vendor(self, ask: DoctorInput, root: "_RootView") -> Iterator[Finding]:
        try:
            endpoint = self.batches.find_endpoint()
        except ClaudeBatchError as error:
            yield _no_reply("api", f"{self.batches.base_url}: {error}")
            return
        yield self._compare_endpoint(endpoint, ask, root)
        try:
            reply = self.batches.check_key_and_list()
        except CredentialsError as error:
            yield Finding(
                name="key", status=Health.FAIL, detail=str(error), remedy="Make a key in the Console, and restart the worker with it."
            )
            return
        except ClaudeBatchError as error:
            yield _no_reply("key", f"Whether the worker's key works is not known. {error}", answered="status" in error.context)
            return
        yield Finding(name="key", status=Health.OK, detail="The API takes the worker's key.")
        yield _compare_workspace(reply.workspace_id, root.workspace_id)
        yield self._compare_clock(reply)
        for model in ask.models:
            yield self._examine_model(model)

    def _compare_endpoint(self, endpoint: str, ask: DoctorInput, root: "_RootView") -> Finding:
        detail = f"The worker talks to {self.batches.base_url} (endpoint {endpoint!r})"
        others = [
            f"the root {ask.root} holds answers of {root.endpoint!r}" if root.endpoint not in (None, endpoint) else "",
            f"this client plans for {ask.endpoint!r}" if ask.endpoint not in (None, endpoint) else "",
        ]
        if any(others):
            remedy = "Set ANTHROPIC_BASE_URL of the worker and of the client alike, or use another root."
            return Finding(name="api", status=Health.FAIL, detail=f"{detail}, {', '.join(filter(None, others))}.", remedy=remedy)
        return Finding(name="api", status=Health.OK, detail=f"{detail}.")

    def _compare_clock(self, reply: VendorReply) -> Finding:
        try:
            ahead_s = (self.clock() - parsedate_to_datetime(reply.date)).total_seconds()
        except (ValueError, TypeError):
            return Finding(name="clock", status=Health.OK, detail="The vendor's reply has no date to compare with.")
        side = "ahead of" if ahead_s > 0 else "behind"
        detail = f"The worker's clock is {abs(ahead_s):,.0f} s {side} that of the API, the limit is {SKEW_LIMIT_S:.0f} s."
        if abs(ahead_s) <= SKEW_LIMIT_S:
            return Finding(name="clock", status=Health.OK, detail=detail)
        return Finding(name="clock", status=Health.WARN, detail=detail, remedy="Let the worker's machine set its clock by NTP.")

    def _examine_model(self, model: str) -> Finding:
        name = f"model {model}"
        try:
            found = self.batches.get_model(model)
        except ClaudeBatchError as error:
            return _no_reply(name, str(error), answered="status" in error.context)
        if found is None:
            return Finding(name=name, status=Health.FAIL, detail=f"The API does not know {model}.", remedy="Correct the model's id.")
        if found.lifecycle == "retired":
            return Finding(name=name, status=Health.FAIL, detail=f"{model} is retired.", remedy="Name a current model.")
        if found.supports("batch") is False:
            return Finding(
                name=name,
                status=Health.FAIL,
                detail=f"The Message Batches API does not take {model}.",
                remedy="Name another model.",
            )
        detail = describe_model(found)
        if found.lifecycle == "deprecated":
            until = f", retires {found.retires_at[:10]}" if found.retires_at else ""
            return Finding(name=name, status=Health.WARN, detail=f"Deprecated{until}; {detail}", remedy="Move to a current model.")
        return Finding(name=name, status=Health.OK, detail=detail)


def describe_model(model: Model) -> str:
    """Return a model's limits in a line."""
    limits = [
        f"{model.max_input_tokens:,} tokens of input" if model.max_input_tokens is not None else "",
        f"max_tokens up to {model.max_tokens:,}" if model.max_tokens is not None else "",
        "no structured outputs" if model.supports("structured_outputs") is False else "",
    ]
    return ", ".join(filter(None, limits)) or "the API knows it and tells no limits"


@dataclass(frozen=True, slots=True, kw_only=True)
class _RootView:
    """The root as the worker sees it; None for what is not pinned or cannot be read."""

    finding: Finding
    endpoint: str | None = None
    workspace_id: str | None = None


def _examine_root(ask: DoctorInput, store: Store) -> _RootView:
    try:
        if ask.token is not None and store.get(ask.token) is None:
            return _RootView(
                finding=_unusable_root(
                    f"The worker does not see what this client wrote to {store.uri}: they work on different folders of that name.",
                    "Use a root that both see: an object store, or a shared folder under the same path.",
                )
            )
        record, workspace = read_root(store), store.get("workspace.json")
        workspace_id = None if workspace is None else msgspec.json.decode(workspace, type=WorkspaceRecord).workspace_id
        remove_token(store, write_token(store))
    except msgspec.DecodeError as error:
        return _RootView(finding=_unusable_root(f"{store.uri}: a record cannot be read: {error}.", "Restore the folder."))
    except ClaudeBatchError as error:
        return _RootView(finding=_unusable_root(str(error)))
    return _RootView(
        finding=Finding(name="worker root", status=Health.OK, detail=f"The worker reads and writes {store.uri}."),
        endpoint=record.endpoint if record else None,
        workspace_id=workspace_id,
    )


def _unusable_root(detail: str, remedy: str = "The worker's user and machine need the access that this client needs.") -> Finding:
    return Finding(name="worker root", status=Health.FAIL, detail=detail, remedy=remedy)


def _compare_workspace(workspace_id: str | None, pinned: str | None) -> Finding:
    if workspace_id is None:
        detail = "The API does not say to which workspace the worker's key belongs."
    elif pinned is None:
        detail = f"The worker's key belongs to {workspace_id}; the first run pins it in the root."
    elif pinned == workspace_id:
        detail = f"The worker's key belongs to {workspace_id}, as pinned in the root."
    else:
        return Finding(
            name="workspace",
            status=Health.FAIL,
            detail=f"The root belongs to the workspace {pinned}, the worker's key to {workspace_id}.",
            remedy="Give the worker a key of the root's workspace, or use another root.",
        )
    return Finding(name="workspace", status=Health.OK, detail=detail)


def _no_reply(name: str, detail: str, *, answered: bool = False) -> Finding:
    remedy = "Wait, then look again." if answered else "Check the worker's network, ANTHROPIC_BASE_URL and its proxy."
    return Finding(name=name, status=Health.FAIL, detail=detail, remedy=remedy)
