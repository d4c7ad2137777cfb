"""What crosses Temporal for the doctor, and where a person names a batch: workflows of one activity each.

Both sides import this file; a new field gets a default.
"""

from dataclasses import dataclass, field

from claude_batch_dagster.core.contract import Finding

DOCTOR_WORKFLOW_TYPE = "DoctorWorkflow"
DOCTOR_ID_PREFIX = "claude-batch-doctor/"
ADOPT_WORKFLOW_TYPE = "AdoptWorkflow"
ADOPT_ID_PREFIX = "claude-batch-adopt/"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptInput:
    """Input of the adopting workflow and of its activity: a person says that this batch is the shard's."""

    root: str
    number: int
    run_id: str
    round: int
    shard: int
    batch_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorInput:
    """Input of the doctor's workflow and of its activity.

    Attributes:
        root: URI of the root.
        models: Models to ask the vendor for.
        endpoint: Where the client's work would go, None where it does not know.
        token: Path, below the root, of an object that the client wrote: a worker that does not see it works on another folder. None
            where the client could not write one.
    """

    root: str
    models: tuple[str, ...] = ()
    endpoint: str | None = None
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """Result of the doctor's workflow: what one worker found, and its versions by name of the distribution."""

    findings: tuple[Finding, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
