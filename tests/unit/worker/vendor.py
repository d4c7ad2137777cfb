"""What the worker's parts ask the vendor and the price list for, where no request is sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from temporal_worker.vendor import Model


def price(model: str, *, input_tokens: int, output_tokens: int, **_: int) -> int | None:
    """A nano-USD an output token, and nothing for the input."""
    return output_tokens


@dataclass
class Vendor:
    """A vendor with one model.

    Attributes:
        lines: Of every batch's results.
        max_tokens: What the model allows.
        failure: Raised where the model is asked about.
        asked: Models that were asked about.
    """

    lines: list[bytes] = field(default_factory=list)
    max_tokens: int | None = 64_000
    failure: Exception | None = None
    asked: list[str] = field(default_factory=list)

    def find_endpoint(self) -> str:
        return "simulator"

    def get_model(self, model: str) -> Model | None:
        self.asked.append(model)
        if self.failure is not None:
            raise self.failure
        return Model(id=model, lifecycle="active", max_tokens=self.max_tokens)

    @contextmanager
    def stream_results(self, _: str) -> Iterator[Iterator[bytes]]:
        yield iter([b"\n".join(self.lines)])
