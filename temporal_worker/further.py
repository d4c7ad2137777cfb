"""Whether a request gets a further round of its run: what its model allows, and whether its answer broke the schema before.

Asked by who collects a batch, so that the responses say it to later runs, and by who opens the round.
"""

from typing import TYPE_CHECKING, assert_never

import numpy as np

from claude_batch_dagster.core.errors import CredentialsError, RefusedError, VendorUnavailableError
from claude_batch_dagster.core.outcome import Again, Outcome, choose_again, raise_max_tokens
from claude_batch_dagster.core.response import Response
from claude_batch_dagster.storage.answers import Answers
from claude_batch_dagster.storage.keys import Keys, Mask, pack_keys
from claude_batch_dagster.storage.plans import batch_ids, list_submissions, read_task
from temporal_worker.root import OpenRoot

if TYPE_CHECKING:
    from temporal_worker.batches import Batches

KEY_RETRY_S = 60.0


class ModelLimits:
    """Asks the vendor for the most that a model answers, once a model, and only where a request was cut."""

    def __init__(self, batches: "Batches") -> None:
        self._batches = batches
        self._found: dict[str, int | None] = {}

    def find(self, model: str) -> int | None:
        """Return tokens, None where the vendor does not say.

        Raises:
            VendorUnavailableError: Transient. The key is refused too: the work waits for a worker with one that works.
        """
        if model not in self._found:
            try:
                found = self._batches.get_model(model)
            except CredentialsError as error:
                told = f"{error} Until then nobody knows how far max_tokens of {model} can be raised, and answers that were cut wait."
                raise VendorUnavailableError(told, retry_after_s=KEY_RETRY_S) from error
            except RefusedError:
                found = None
            self._found[model] = None if found is None else found.max_tokens
        return self._found[model]


class InvalidBefore:
    """Tells which requests of one task had an invalid answer before this round of a run; reads them when first asked.

    Before the first round: the answer of another run, which granted a further round and did not open it. This one is it.
    """

    def __init__(self, root: OpenRoot, task_key: str, round_number: int) -> None:
        self._root = root
        self._task_key = task_key
        self._round = round_number
        self._earlier: list[Answers] | None = None

    def tell(self, keys: Keys) -> Mask:
        """Tell it of each of these keys."""
        if self._round == 1:
            return self._tell_of_others(keys)
        if self._earlier is None:
            self._earlier = self._read()
        found = np.zeros(len(keys), np.bool_)
        for answers in self._earlier:
            found |= answers.ended_as(keys, Outcome.INVALID)
        return found

    def _tell_of_others(self, keys: Keys) -> Mask:
        store, run_id = self._root.store, self._root.entry.run_id
        if self._earlier is None:
            self._earlier = [Answers(store, self._root.record.endpoint, self._task_key)]
        (answers,) = self._earlier
        invalid, granted = answers.ended_as(keys, Outcome.INVALID), ~answers.final(keys)
        if not invalid.any():
            return invalid
        # The own answer, of an attempt before, says what was decided then.
        own = frozenset(batch_ids(list_submissions(store, run_id)))
        told_by = answers.fetch(answers.find(keys[invalid]))["batch_id"].to_pylist()
        invalid[invalid] = [was_granted != (batch_id in own) for was_granted, batch_id in zip(granted[invalid], told_by, strict=True)]
        return invalid

    def _read(self) -> list[Answers]:
        store, run_id = self._root.store, self._root.entry.run_id
        submissions = list_submissions(store, run_id)
        rounds = [batch_ids({place: records for place, records in submissions.items() if place[0] == n}) for n in range(1, self._round)]
        # One a round: of all rounds together only the best answer would show.
        return [Answers(store, self._root.record.endpoint, self._task_key, batch_ids=ids) for ids in rounds]


class Grants:
    """Tells of one task's responses in a round whether their run asks them again in a further one, should it come."""

    def __init__(self, root: OpenRoot, task_key: str, round_number: int, limits: ModelLimits) -> None:
        self._last = round_number >= root.entry.max_attempts
        self._model = str(read_task(root.store, task_key)["model"])
        self._limits = limits
        self._invalid_before = InvalidBefore(root, task_key, round_number)

    def has(self, response: Response) -> bool:
        """Tell it of one response.

        Raises:
            VendorUnavailableError: Transient. It was cut, and the vendor does not say how far its cap can be raised.
        """
        again = None if self._last else choose_again(response.outcome, response.error)
        match again:
            case None:
                return False
            case Again.UNCHANGED:
                return True
            case Again.ONCE:
                return not self._invalid_before.tell(pack_keys([response.request_key])).any()
            case Again.LARGER:
                return raise_max_tokens(response.max_tokens, self._limits.find(self._model)) is not None
            case again:
                assert_never(again)
