"""The few words by which a simulated model tells praise from complaint, and one label from another. Pure."""

import re
from collections.abc import Callable
from functools import lru_cache


def words(text: str) -> frozenset[str]:
    """The words of a list that is written as one text."""
    return frozenset(text.split())


GOOD = words(
    """
    good great excellent love loves loved like liked amazing awesome best better perfect perfectly nice happy pleased wonderful fantastic
    easy superb recommend recommended fine works sturdy beautiful impressed impressive solid comfortable fast reliable sharp thrilled value
    """
)
BAD = words(
    """
    bad terrible awful worst worse broken broke poor poorly hate hated horrible useless waste disappointed disappointing defective died
    dead fail fails failed failure problem problems refund return returned sucks suck junk cheap annoying slow never unfortunately
    difficult crap garbage complaint wrong error errors stopped doesn't don't didn't won't can't cannot
    """
)
KINDS = {
    "spam": words("http https www click subscribe winner promo viagra casino giveaway"),
    "hate": words("racist scum subhuman bigot nazi vermin"),
    "harassment": words("idiot moron loser pathetic harass bully"),
    "violence": words("kill murder stab bomb attack"),
    "sexual": words("sex sexual porn nude naked xxx erotic"),
    "profanity": words("damn shit fuck fucking bastard bitch"),
    "self_harm": words("suicide suicidal overdose"),
    "illegal": words("cocaine heroin stolen counterfeit hacked"),
}
KINDS["toxic"] = KINDS["hate"] | KINDS["harassment"] | KINDS["profanity"]

BENIGN_LABELS = words(
    "ok okay safe benign clean none no allowed allow approve approved acceptable fine normal appropriate ham not_spam legit"
)
POSITIVE_LABELS = words("positive very_positive good great praise happy satisfied pos thumbs_up promoter")
NEGATIVE_LABELS = words("negative very_negative bad poor complaint unhappy dissatisfied angry neg problem issue defect detractor")
NEUTRAL_LABELS = words("neutral mixed other unknown unclear passive")


def choose_label(labels: tuple[str, ...], seen: frozenset[str], mood: int, roll: Callable[[int], int]) -> str:
    """The label that fits a text by its words and mood; by `roll` where they leave a choice."""
    for label, hints in _kinds_among(labels):
        if hints & seen:
            return label
    fitting = _fitting(labels, (mood > 0) - (mood < 0))
    return fitting[roll(len(fitting))] if len(fitting) > 1 else fitting[0]


@lru_cache(maxsize=1024)
def _kinds_among(labels: tuple[str, ...]) -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple((label, KINDS[label_name(label)]) for label in labels if label_name(label) in KINDS)


@lru_cache(maxsize=1024)
def _fitting(labels: tuple[str, ...], mood: int) -> tuple[str, ...]:
    if _kinds_among(labels):
        wanted = BENIGN_LABELS | NEUTRAL_LABELS
    elif mood > 0:
        wanted = POSITIVE_LABELS | BENIGN_LABELS
    else:
        wanted = NEGATIVE_LABELS if mood < 0 else NEUTRAL_LABELS
    return tuple(label for label in labels if label_name(label) in wanted) or labels


@lru_cache(maxsize=4096)
def is_benign(label: str) -> bool:
    """Whether a label says that nothing is wrong."""
    return label_name(label) in BENIGN_LABELS | POSITIVE_LABELS | NEUTRAL_LABELS


@lru_cache(maxsize=4096)
def label_name(label: str) -> str:
    """A label as the lists above spell it."""
    return re.sub(r"[\s-]+", "_", label.strip().lower())
