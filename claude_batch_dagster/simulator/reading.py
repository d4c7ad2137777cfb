"""What a simulated model understands of a prompt: its document, mood, and how long an answer may be. Pure, extractive."""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from claude_batch_dagster.simulator.lexicon import BAD, GOOD

PREFIX = "[simulated]"
DEFAULT_WORDS = 40
_READ_CHARS = 2000
_FELT_CHARS = 1000

_CLOSING_TAG = re.compile(r"</([A-Za-z][\w-]*)>")
_FENCES = ('"""', "```", "\n---\n")
_INTRODUCED = re.compile(r":[ \t]*\n+\s*(\S.*)", re.DOTALL)
_AFTER_BLANK = re.compile(r"\n[ \t]*\n\s*(\S.*)", re.DOTALL)
_ORDERS = re.compile(
    r"\b(summar|classif|label|moderat|analy[sz]|extract|answer|translat|rate|decide|read|text|review|document|following|below|words)", re.I
)
_SENTENCE_END = re.compile(r"[.!?]\s|\n")
_AT_MOST = re.compile(
    r"\b(?:at most|no more than|max(?:imum)?(?: of)?|up to|under|within|fewer than|less than|in|limit of)\s+(\d{1,4})\s+words?\b", re.I
)
_PUNCTUATION = str.maketrans(dict.fromkeys('.,;:!?()[]{}"/*<>#&+=|~', " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One prompt as it was understood."""

    document: str
    seed: int
    """A number that depends on the content of the whole request, for every choice without a reason."""
    max_words: int

    words: frozenset[str] = frozenset()
    """The lower-case words of the document's beginning."""
    mood: int = 0
    """Above 0 for praise, below 0 for complaint."""

    def roll(self, salt: str, sides: int) -> int:
        """A number below `sides`, the same for the same content and salt."""
        mixed = (zlib.crc32(salt.encode("utf-8", "replace"), self.seed & 0xFFFFFFFF) ^ (self.seed >> 32)) * 0x9E3779B97F4A7C15
        return (mixed >> 17) % 0xFFFFFFFF % sides

    def extract(self, max_words: int, *, skip: int = 0) -> str:
        """The first sentences that fit, of which the prefix counts as one word; `skip` starts later."""
        room = max_words - 1
        taken: list[str] = []
        for sentence in self._sentences(skip):
            found = sentence.split()
            if taken and (len(taken) >= 8 or len(taken) + len(found) > room):
                break
            taken += found[: room - len(taken)]
        return " ".join([PREFIX, *taken]).rstrip(",;: ")

    def _sentences(self, skip: int) -> Iterator[str]:
        start = 0
        for end in _SENTENCE_END.finditer(self.document, 0, _READ_CHARS):
            if end.end() - start > 2:
                if skip <= 0:
                    yield self.document[start : end.end()]
                skip -= 1
            start = end.end()
        yield self.document[start:_READ_CHARS] or self.document[:_READ_CHARS]


def read_prompt(system: str, prompt: str, seed: int, *, feel: bool = True) -> Reading:
    """Understand a prompt, the last user turn; without `feel` only what plain text needs."""
    document = find_document(prompt)
    max_words = word_limit(prompt[: len(prompt) - len(document)], system)
    if not feel:
        return Reading(document=document, seed=seed, max_words=max_words)
    words = frozenset(document[:_FELT_CHARS].lower().translate(_PUNCTUATION).split())
    mood = len(words & GOOD) - len(words & BAD)
    return Reading(document=document, seed=seed, max_words=max_words, words=words, mood=mood)


def find_document(prompt: str) -> str:
    """The part of a prompt that it asks about: tagged, fenced, after `...:` and a line break, or after an instructing paragraph.

    Takes time in proportion to the prompt, whatever it holds.
    """
    prompt = prompt.strip()
    if marked := _tagged(prompt) or _fenced(prompt):
        return marked
    for pattern in (_INTRODUCED, _AFTER_BLANK):
        found = pattern.search(prompt)
        if found and (pattern is _INTRODUCED or _ORDERS.search(prompt, 0, found.start() + 1)):
            return found.group(1)
    return prompt


def _tagged(prompt: str) -> str:
    closing = _CLOSING_TAG.match(prompt, end) if (end := prompt.rfind("</")) > 0 else None
    if closing is None:
        return ""
    opening = prompt.find(f"<{closing.group(1)}")
    start = prompt.find(">", opening) + 1 if 0 <= opening < closing.start() else 0
    return prompt[start : closing.start()].strip() if start else ""


def _fenced(prompt: str) -> str:
    for fence in _FENCES:
        if (opening := prompt.find(fence)) >= 0:
            start = opening + len(fence)
            end = prompt.find(fence, start)
            return prompt[start : end if end >= 0 else len(prompt)].strip()
    return ""


def word_limit(*texts: str, default: int = DEFAULT_WORDS) -> int:
    """The N of the first `at most N words` in the texts."""
    for text in texts:
        if "word" in text and (limit := _limit_in(text[:_READ_CHARS])):
            return limit
    return default


# Instructions are the same in most requests of a batch.
@lru_cache(maxsize=256)
def _limit_in(text: str) -> int | None:
    found = _AT_MOST.search(text)
    return max(1, int(found.group(1))) if found else None
