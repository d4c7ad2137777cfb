import signal
import subprocess
import sys
from pathlib import Path

import pytest

from claude_batch_dagster.simulator import serve
from claude_batch_dagster.simulator.__main__ import main

ROOT = Path(__file__).parents[3]


def run(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "claude_batch_dagster.simulator", "--port", "0", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_it_at_once(number):
    with run() as process:
        assert process.stdout.readline().startswith("simulator ready on http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(3) == 0


def test_it_exits_with_its_parent():
    with run("--exit-with-parent") as process:
        process.stdout.readline()
        process.stdin.close()
        assert process.wait(3) == 0


@pytest.mark.parametrize("arguments", [["--fault", "nonsense"], ["--seconds", "-1"], ["--port", "x"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err


def test_taken_port_exits_1(simulator, capsys):
    port = simulator.server.port
    assert main(["--port", str(port)]) == 1
    assert capsys.readouterr().err == (
        f"simulator: cannot listen on 127.0.0.1:{port}: Address already in use. Nothing was started. Choose another with --port, 0 for a free one.\n"
    )


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--host", "203.0.113.1"]])
def test_an_address_that_cannot_be_listened_on_exits_1(arguments, capsys):
    assert main(arguments) == 1
    assert "simulator: cannot listen on " in capsys.readouterr().err


def test_it_runs_on_the_callers_event_loop(tmp_path):
    import asyncio

    async def check():
        async with serve(books=tmp_path, workspace="wrkspc_other") as simulator:
            import aiohttp

            async with aiohttp.ClientSession() as session, session.get(simulator.url + "/simulator/faults") as response:
                assert response.headers["anthropic-workspace-id"] == "wrkspc_other"
                assert (await response.json())["active"] == {}

    asyncio.run(check())


def test_it_imports_nothing_of_the_product():
    code = (
        "import sys, claude_batch_dagster.simulator as s\n"
        "assert 'aiohttp' not in sys.modules\n"
        "import claude_batch_dagster.simulator.__main__\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in {'anthropic', 'dagster', 'temporalio', 'pyarrow', 'temporal_worker'}"
        " or m.startswith('claude_batch_dagster.') and not m.startswith('claude_batch_dagster.simulator')]\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
