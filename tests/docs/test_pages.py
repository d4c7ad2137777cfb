"""Every block of every page runs, in its order, in a folder of the page's own."""

import ast
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import REPOSITORY, RUN_LANGUAGES, SHOWN_LANGUAGES, Block, pages, read_blocks, read_commands
from tests.docs.shell import Shell

# The longest first, so that two processes end at about the same time.
PAGES = {
    page.relative_to(REPOSITORY).as_posix(): page
    for page in sorted(pages(), key=lambda page: -len(read_blocks(page)))
    if any(block.not_run is None and block.language in RUN_LANGUAGES for block in read_blocks(page))
}
TERMINAL = Path(__file__).with_name("terminal.py")
ENDS_OTHERWISE = (3, 130)
"""Rows failed; interrupted. A page says it with `echo $?` where it matters."""
HAVE_THEIR_OWN_SERVER = {"docs/production.md", "docs/recovering.md"}
STARTS_RUNS = ("claude-batch run", "dagster asset materialize")
BATCH_S = 0.3


@pytest.fixture
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    name = request.node.callspec.params["name"]
    starts = name not in HAVE_THEIR_OWN_SERVER and any(word in PAGES[name].read_text() for word in STARTS_RUNS)
    if name.startswith("examples/"):
        shutil.copytree(PAGES[name].parent, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("output", "__pycache__", ".*"))
    found = Shell(tmp_path, batch_s=BATCH_S if starts else None)
    yield found
    found.close()


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs(name: str, shell: Shell) -> None:
    """A page's commands end as it says, and print what it says; its files are what they look like."""
    for block in read_blocks(PAGES[name]):
        if block.not_run is None:
            began_s = time.monotonic()
            run_block(block, shell)
            print(f"{block}  {block.language}  {time.monotonic() - began_s:.1f} s")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_block_says_what_it_is(page: Path) -> None:
    """A block without a known language would never be run."""
    assert [str(block) for block in read_blocks(page) if block.language not in (*RUN_LANGUAGES, *SHOWN_LANGUAGES)] == []


def run_block(block: Block, shell: Shell) -> None:
    """Run a block as its language says."""
    if block.title is not None:
        path = shell.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    match block.language:
        case "sh":
            code, printed = shell.run(block.text)
            assert code == 0, f"{block}: exit code {code}\n{printed}"
        case "console":
            run_console(block, shell)
        case "python":
            ast.parse(block.text)
            name = block.title or "block.py"
            (shell.folder / name).write_text(block.text)
            code, printed = shell.run(f"python {name}")
            assert code == 0, f"{block}: exit code {code}\n{printed}"
        case "yaml":
            yaml.safe_load(block.text)
        case "json":
            json.loads(block.text)
        case "sql":
            run_sql(block, shell)


def run_console(block: Block, shell: Shell) -> None:
    """Run the commands and compare what they print; one that prints `Error:` ends with another exit code than 0."""
    code = 0
    for command in read_commands(block):
        line, shown = command.line.replace("$?", str(code)), "\n".join(command.printed)
        if command.typed:
            (shell.folder / ".typed").write_text(shown)
            with shell.holding_batches():
                code, printed = shell.run(f"python {TERMINAL} {shlex.quote(line)} < .typed")
        else:
            code, printed = shell.run(line)
        assert command.describes(printed), f"{block}: $ {line}\n--- printed:\n{printed}\n--- expected:\n{shown}"
        assert (code != 0) == ("Error:" in shown or code in ENDS_OTHERWISE), f"{block}: $ {line}\nends with {code}\n{printed}"


def run_sql(block: Block, shell: Shell) -> None:
    """Run the statements with DuckDB in the page's folder; the last one finds something."""
    program = "import duckdb, sys\nfound = duckdb.sql(sys.stdin.read())\nsys.exit(not found.fetchall())"
    done = subprocess.run([sys.executable, "-c", program], input=block.text, text=True, cwd=shell.folder, capture_output=True, check=False)
    assert done.returncode == 0, f"{block}: {done.stderr or 'no row'}"
