"""Every interleaving within stated bounds, over the functions that the product runs; and each safeguard taken away."""

import os

import pytest

from tests.model.admission import Admissions
from tests.model.admission import Bounds as ClientBounds
from tests.model.bounds import QUICK, Scene, pick_scenes
from tests.model.safeguards import ASSUMPTIONS, SAFEGUARDS, STUCK, Removal
from tests.model.search import Found, search
from tests.model.submission import Bounds, OneShard

DEPTH = os.environ.get("MODEL_DEPTH", QUICK)


def tell(found: Found) -> str:
    return "\n  ".join((found.describe(), *found.trace))


@pytest.mark.timeout(300 if DEPTH == QUICK else 7_200)
@pytest.mark.parametrize("scene", pick_scenes(DEPTH), ids=lambda scene: scene.name)
def test_nothing_is_bought_twice_and_nobody_is_blocked(scene: Scene) -> None:
    found = search(scene.model())
    print(scene.name, found.describe(), sep=": ")
    assert found.whole, tell(found)
    assert found.holds, tell(found)


@pytest.mark.parametrize("removal", SAFEGUARDS, ids=lambda removal: removal.name)
def test_without_a_safeguard_it_fails(removal: Removal) -> None:
    found = removal.search()
    print(removal.name, found.describe(), sep=": ")
    assert found.stuck if removal.ends == STUCK else found.violation == removal.ends, tell(found)
    assert found.trace


@pytest.mark.parametrize("removal", ASSUMPTIONS, ids=lambda removal: removal.name)
def test_a_world_that_breaks_an_assumption_makes_it_pay_twice(removal: Removal) -> None:
    found = removal.search()
    assert found.violation == "paid twice", tell(found)


@pytest.mark.parametrize(
    "model",
    [OneShard(Bounds(modes=Bounds().modes[:1])), Admissions(ClientBounds(wants=("x",), expired=1))],
    ids=("a shard", "admission"),
)
def test_a_program_that_runs_again_stops_at_the_same_operation(model: OneShard | Admissions) -> None:
    assert search(model).whole
    with model.stand_ins():
        assert model.programs.run_again() == model.programs.operations
