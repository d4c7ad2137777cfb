"""The bounds within which the product is searched: the quick ones in every run of the tests, the deep ones where MODEL_DEPTH=deep.

The deepest were not searched to their end yet.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claude_batch_dagster.core.submission import Mode
from tests.model import admission, submission
from tests.model.search import Model

QUICK, DEEP, DEEPEST = DEPTHS = ("quick", "deep", "deepest")
RUN, DRAIN = Mode.RUN, Mode.DRAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A model within bounds, in words."""

    name: str
    model: Callable[[], Model]
    depth: str = QUICK


def _shard(name: str, depth: str = QUICK, **bounds: Any) -> Scene:
    return Scene(name=f"a shard: {name}", depth=depth, model=lambda: submission.OneShard(submission.Bounds(**bounds)))


def _clients(name: str, depth: str = QUICK, **bounds: Any) -> Scene:
    return Scene(name=f"admission: {name}", depth=depth, model=lambda: admission.Admissions(admission.Bounds(**bounds)))


SCENES = (
    _shard("2 drivers, death anywhere, 1 lost reply, 2 POSTs", deaths=True),
    _shard("1 driver, 2 lost replies, 1 refusal, 1 foreign twin, 3 POSTs", modes=(RUN,), lost=2, refused=1, foreign=1, sends=3),
    _shard("1 driver and 1 drain, death anywhere, 1 lost reply, 2 POSTs", modes=(RUN, DRAIN), deaths=True),
    _clients("2 clients, rows x and xy, 2 plans each", wants=("x", "xy")),
    _clients("2 equal clients, 1 workflow terminated, 1 plan each", kills=1, plans=1),
    _clients("1 client, 1 zombie driver, 1 expired batch", wants=("x",), zombies=1, expired=1, plans=1),
    _clients("1 client, 1 cancel, 1 expired batch", wants=("x",), cancels=1, expired=1, plans=1),
    _clients("2 equal clients, 1 expired batch, the index kept up once, 1 plan each", wants=("x", "x"), expired=1, upkeeps=1, plans=1),
    _shard("2 drivers, 1 lost reply, 1 foreign twin, 2 POSTs", DEEP, foreign=1),
    _shard("2 drivers, 2 lost replies, 1 refusal, 3 POSTs", DEEPEST, lost=2, refused=1, sends=3),
    _shard("2 drivers with 2 s to send, 1 lost reply, 2 POSTs", DEEP, send_s=1.9),
    _shard("3 drivers, death anywhere, 1 lost reply, 2 POSTs", DEEPEST, modes=(RUN, RUN, RUN), deaths=True),
    _shard(
        "2 drivers and 1 drain, death anywhere, 1 lost reply, 1 foreign twin, 2 POSTs",
        DEEPEST,
        modes=(RUN, RUN, DRAIN),
        deaths=True,
        foreign=1,
    ),
    _clients("3 equal clients, 1 plan each", DEEP, wants=("x", "x", "x"), plans=1),
    _clients("2 equal clients, 1 zombie driver, 1 plan each", DEEP, zombies=1, plans=1),
    _clients("2 equal clients, 1 cancel, 2 plans each", DEEP, cancels=1),
    _clients("2 clients, rows x and xy, 1 workflow terminated, 2 plans each", DEEPEST, wants=("x", "xy"), kills=1),
    _clients("2 equal clients, 1 workflow terminated, 1 expired batch, 2 plans each", DEEPEST, kills=1, expired=1),
    _clients(
        "1 client, 1 zombie driver, 1 workflow terminated, 1 expired batch", DEEP, wants=("x",), kills=1, zombies=1, expired=1, plans=1
    ),
)


def pick_scenes(depth: str) -> list[Scene]:
    """Return the scenes of a depth, those of lesser ones included."""
    return [scene for scene in SCENES if DEPTHS.index(scene.depth) <= DEPTHS.index(depth)]
