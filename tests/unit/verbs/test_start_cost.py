import pickle
import subprocess
import sys
from typing import Any

from claude_batch_dagster.core.task import ClaudeTask

PLAN_AND_PUBLISH = """
import pickle, sys
from claude_batch_dagster.verbs.plan import plan_job
from claude_batch_dagster.verbs.publish import publish_job
job = pickle.load(sys.stdin.buffer)
plan = plan_job(job)
rows = publish_job(job, [None], run="r1").outputs[0].written.rows
sys.exit(repr((plan.total, rows, "pandas" in sys.modules)))
"""
FIELDS = {
    "type": "object",
    "properties": {"summary": {"type": "string"}, "score": {"type": "integer"}, "good": {"type": "boolean"}, "grade": {"type": "number"}},
    "required": ["summary"],
}


def test_planning_and_publishing_do_not_load_pandas(lake: Any) -> None:
    task = ClaudeTask(name="t", model="claude-haiku-5-5", prompt="{text}", output=FIELDS, max_tokens=50)
    job = lake.job(task)
    lake.texts("a", "b", None, "a")
    answer = '{"summary": "x", "score": 1, "good": true, "grade": 0.5}'
    lake.finish(job, lambda asked: {"answer": answer} if asked.text == "a" else {"outcome": "errored", "error": "e", "model": None})
    lake.texts("a", "b", None, "c")
    ended = subprocess.run([sys.executable, "-c", PLAN_AND_PUBLISH], input=pickle.dumps(job), capture_output=True, check=False)
    told = ended.stderr.decode().strip()
    assert told.endswith(", False)"), told
    assert ("asked=2" in told, "'succeeded': 1" in told, "'pending': 1" in told) == (True, True, True), told
