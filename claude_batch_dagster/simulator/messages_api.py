"""`/v1/messages`, `/v1/messages/count_tokens` and `/v1/models`: the synchronous neighbours of batches."""

from collections import deque

import msgspec
import orjson
from aiohttp import web

from claude_batch_dagster.simulator.answers import SURROGATE_MARK, answer_message, spoil
from claude_batch_dagster.simulator.faults import FaultBoard
from claude_batch_dagster.simulator.models import CATALOGUE, describe_model, find_model
from claude_batch_dagster.simulator.question import Question, Refusal, read_question
from claude_batch_dagster.simulator.upload import receive_small_body
from claude_batch_dagster.simulator.wire import WireError, invalid_request, new_id, not_found

MAX_BODY_BYTES = 32_000_000


async def create_message(request: web.Request, faults: FaultBoard, asked: "deque[bytes]") -> web.Response:
    """POST /v1/messages: the answer that a batch would give. The body is added to `asked`."""
    body = await receive_small_body(request, MAX_BODY_BYTES)
    asked.append(body)
    fields = _fields(body)
    if "stream" in fields and fields["stream"] != msgspec.Raw(b"false"):
        raise invalid_request("stream: the simulator answers in one piece only")
    fields.pop("stream", None)
    question = _question(fields, request)
    message = answer_message(question, new_id("msg_01"), spoiling=spoil(faults.draw_message()), service_tier="standard")
    return web.Response(body=orjson.dumps(message).replace(SURROGATE_MARK.encode(), b"\\ud83d"), content_type="application/json")


async def count_tokens(request: web.Request) -> web.Response:
    """POST /v1/messages/count_tokens: what `usage` would say."""
    fields = _fields(await receive_small_body(request, MAX_BODY_BYTES))
    fields.setdefault("max_tokens", msgspec.Raw(b"1"))
    return web.json_response({"input_tokens": _question(fields, request).input_tokens})


async def list_models(request: web.Request) -> web.Response:
    """GET /v1/models: the whole catalogue, or a page of it."""
    limit = request.query.get("limit", "20")
    if not limit.isdigit() or not 1 <= int(limit) <= 1000:
        raise invalid_request("limit: Input should be between 1 and 1000")
    ids = [model.id for model in CATALOGUE]
    after, before = request.query.get("after_id"), request.query.get("before_id")
    start, end = 0, len(ids)
    if after is not None:
        start = ids.index(after) + 1 if after in ids else end
    if before is not None:
        end = ids.index(before) if before in ids else 0
    page = CATALOGUE[max(start, end - int(limit)) : end] if before is not None else CATALOGUE[start : start + int(limit)]
    return web.json_response(
        {
            "data": [describe_model(model) for model in page],
            "has_more": end - start > len(page),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


async def retrieve_model(request: web.Request) -> web.Response:
    """GET /v1/models/{id}, aliases too."""
    name = request.match_info["model_id"]
    model = find_model(name)
    if model is None:
        raise not_found(f"model: {name}")
    return web.json_response(describe_model(model))


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        body.decode()
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError) as error:
        raise invalid_request(f"The request body is not a JSON object: {error}") from None


def _question(fields: dict[str, msgspec.Raw], request: web.Request) -> Question:
    betas = frozenset(beta.strip() for beta in request.headers.get("anthropic-beta", "").split(",") if beta.strip())
    try:
        question = read_question(msgspec.json.encode(fields), request.headers["anthropic-version"], betas, batch=False)
    except RecursionError:
        raise invalid_request("The request body is nested too deeply") from None
    if isinstance(question, Refusal):
        raise WireError(404 if question.error_type == "not_found_error" else 400, question.error_type, question.message)
    return question
