"""What import-linter cannot see: what an import really loads, what is declared, how long files grow, which machine they name."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("claude_batch_dagster", "temporal_worker")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
MAX_LINES = 450
# Path from the repository's root -> why the file is one noun all the same.
LONG_FILES: dict[str, str] = {}

FRAMEWORKS = {"aiohttp", "anthropic", "click", "dagster", "genai_prices", "numpy", "obstore", "pandas", "pyarrow", "rich", "temporalio"}
PARQUET = {"numpy", "pandas", "pyarrow"}
# Entry point -> what it must not load, by itself or through others. A prefix stands for all below it.
NEVER_LOADS = {
    "claude_batch_dagster": FRAMEWORKS | {"claude_batch_dagster.storage", "claude_batch_dagster.verbs", "temporal_worker"},
    "claude_batch_dagster.core.contract": FRAMEWORKS | {"claude_batch_dagster.storage", "temporal_worker"},
    "claude_batch_dagster.core.presets": FRAMEWORKS | {"claude_batch_dagster.storage", "temporal_worker"},
    "claude_batch_dagster.storage.store": {"anthropic", "dagster", "pandas", "temporal_worker", "temporalio"},
    "claude_batch_dagster.storage.responses": {"anthropic", "dagster", "pandas", "temporal_worker", "temporalio"},
    "claude_batch_dagster.verbs.plan": {"anthropic", "dagster", "pandas", "temporal_worker"},
    "claude_batch_dagster.verbs.run": {"anthropic", "dagster", "pandas", "temporal_worker"},
    "claude_batch_dagster.cli.app": {
        "aiohttp",
        "anthropic",
        "dagster",
        "genai_prices",
        "pandas",
        "pyarrow",
        "temporal_worker",
        "temporalio",
    },
    "claude_batch_dagster.embedded": {"aiohttp", "anthropic", "dagster", "pandas", "temporal_worker"},
    "claude_batch_dagster.assets.decorator": PARQUET | {"anthropic", "temporal_worker"},
    "claude_batch_dagster.resources.resource": PARQUET | {"anthropic", "temporal_worker", "temporalio"},
    "claude_batch_dagster.component.component": PARQUET | {"anthropic", "temporal_worker", "temporalio"},
    "claude_batch_dagster.sensors.deferred": PARQUET | {"anthropic", "temporal_worker", "temporalio"},
    "claude_batch_dagster.demo.definitions": {"anthropic", "temporal_worker"},
    "claude_batch_dagster.simulator": FRAMEWORKS | {"claude_batch_dagster.core", "claude_batch_dagster.storage"},
    "claude_batch_dagster.simulator.server": {
        "anthropic",
        "claude_batch_dagster.core",
        "claude_batch_dagster.storage",
        "dagster",
        "temporal_worker",
        "temporalio",
    },
    "temporal_worker.workflows": {"anthropic", "dagster", "pandas", "temporal_worker.batches"},
    "temporal_worker.batches": {"dagster", "pandas", "temporalio"},
    "temporal_worker.worker": {"claude_batch_dagster.assets", "claude_batch_dagster.cli", "dagster", "pandas"},
}
# What pure functions on bytes and types may use beside the standard library.
CORE_LIBRARIES = {"jsonschema_rs", "msgspec", "orjson"}
# Distribution -> module, where they differ by more than case and dashes.
MODULES_OF = {"pyyaml": {"yaml"}, "protobuf": {"google"}}

MACHINE_NAMES = re.compile(r"(?<![\w.])/(?:home|opt|root|work|Users)/|pythonhosted|pypi\.org|--(?:extra-)?index-url|--find-links|file:///")


@pytest.mark.parametrize("module", NEVER_LOADS)
def test_an_entry_point_loads_only_what_it_needs(module: str) -> None:
    """An import in a fresh process leaves none of the forbidden modules in sys.modules."""
    if not _exists(module):
        pytest.skip(f"{module} is not written yet")
    script = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    loaded = set(json.loads(process.stdout.splitlines()[-1]))
    assert loaded & NEVER_LOADS[module] == set()


def test_core_uses_pure_libraries_only() -> None:
    """Core imports the standard library, itself, and the JSON library and validator."""
    found = {
        (path.name, module)
        for path in (REPOSITORY / "claude_batch_dagster" / "core").glob("*.py")
        for module in _third_party(path)
        if module not in CORE_LIBRARIES
    }
    assert found == set()


def test_every_third_party_import_is_declared() -> None:
    """A package that the code imports stands in pyproject.toml: the simulator's and the embedded stack's may be extras."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    always = _modules(project["dependencies"])
    local = _modules(project["optional-dependencies"]["local"])
    package = REPOSITORY / "claude_batch_dagster"
    # Nothing else needs them, and who has not installed them is told how.
    own_extras = {package / "resources" / "loading.py": {"duckdb", "polars"}, package / "verbs" / "views.py": {"duckdb"}}
    may_use_extras = (package / "simulator", package / "embedded", package / "cli")
    missing = {
        (str(path.relative_to(REPOSITORY)), module)
        for path in SOURCES
        for module in _third_party(path)
        if module
        not in always | own_extras.get(path, set()) | (local if any(path.is_relative_to(place) for place in may_use_extras) else set())
    }
    assert missing == set()


def test_files_stay_short_or_say_why() -> None:
    """A file over the limit is listed with its reason, and the list names no file that became shorter."""
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: count for path, count in lines.items() if count > MAX_LINES and not LONG_FILES.get(path)} == {}
    assert {path for path in LONG_FILES if lines.get(path, 0) <= MAX_LINES} == set()


def test_no_file_names_a_machine_or_an_index() -> None:
    """What builds and ships works on any machine: no path of one, no package index."""
    built = ("Makefile", "constraints.txt", "pyproject.toml", "workspace.yaml", ".ci/run")
    hits = {
        (str(path.relative_to(REPOSITORY)), match.group())
        for path in [*SOURCES, *(REPOSITORY / name for name in built)]
        for match in MACHINE_NAMES.finditer(path.read_text())
    }
    assert hits == set()


def test_every_dependency_is_pinned_exactly() -> None:
    """constraints.txt names one version of each package that pyproject.toml asks for, and nothing but versions."""
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    assert {_distribution(requirement) for requirement in asked} - {_distribution(line) for line in lines} == set()


def test_the_root_package_lists_lazy_names() -> None:
    """Dagster finds components through dir(): every public name is in it before anything is loaded."""
    script = "import claude_batch_dagster as c; assert set(c.__all__) <= set(dir(c)); [getattr(c, name) for name in c.__all__]"
    if not (REPOSITORY / "claude_batch_dagster" / "__init__.py").exists():
        pytest.skip("claude_batch_dagster/__init__.py is not written yet")
    process = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def _exists(module: str) -> bool:
    base = REPOSITORY.joinpath(*module.split("."))
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


def _third_party(path: Path) -> Iterator[str]:
    """The top-level modules that a file imports anywhere, save the standard library's and ours."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        for top in {name.partition(".")[0] for name in names}:
            if top not in sys.stdlib_module_names and top not in PACKAGES:
                yield top


def _modules(requirements: list[str]) -> set[str]:
    """The modules that the distributions of requirements provide, by name."""
    names = {_distribution(requirement) for requirement in requirements}
    return {module for name in names for module in MODULES_OF.get(name, {name.replace("-", "_")})}


def _distribution(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ;]", requirement, maxsplit=1)[0].lower().replace("_", "-")
