"""The house rules: who may import whom, and what may not be imported at start-up."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "vlmkit"
GROUND = {"config", "contracts", "errors", "recipe", "registry", "runs"}
ALLOWED = {
    **dict.fromkeys(GROUND, GROUND),
    "models": GROUND,
    "losses": GROUND,
    "data": GROUND,
    "training": {"config", "contracts", "errors", "runs"},
    "scaling": {"registry", "runs", "errors"},
    "tasks": GROUND | {"models", "losses", "data"},
    "evals": GROUND | {"tasks", "models", "data", "training"},
    "pipelines": GROUND | {"data", "models", "losses", "tasks", "training", "evals", "scaling"},
    "cli": GROUND | {"pipelines", "scaling"},
}
HEAVY = ("torch", "transformers", "open_clip", "datasets", "sklearn", "scipy", "matplotlib", "torchvision")
RUN_COMMAND = """
sys.argv = ["vlmkit", *{command!r}]
from vlmkit.cli.app import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "vlmkit" else str(node.module) for alias in node.names
            ]
        found |= {name.split(".")[1] for name in names if name.startswith("vlmkit.")}
    return found


@pytest.mark.parametrize(
    "path", sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in GROUND), ids=str
)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    own = room(path)
    assert own in ALLOWED, f"{path} is in a room the architecture does not have"
    assert imported_rooms(path) <= ALLOWED[own] | {own, "__version__"}


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()) if run.stdout.strip() else set()


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["models"],
        ["frontier", "--budget", "5e12"],
        ["frontier", "--help"],
        ["ask", "--help"],
        ["bench", "--help"],
    ],
)
def test_light_commands_import_nothing_heavy(command: list[str]) -> None:
    assert loaded_after(RUN_COMMAND.format(command=command)) == set()


def test_importing_the_package_imports_no_torch() -> None:
    assert loaded_after("import vlmkit") == set()


@pytest.mark.parametrize(
    "imports",
    [
        "import vlmkit; from transformers import AutoTokenizer; assert 'open_clip' not in sys.modules",
        pytest.param("from transformers import AutoModel; import vlmkit", marks=pytest.mark.slow),
    ],
)
def test_importing_the_package_registers_its_models_with_the_auto_classes(imports: str) -> None:
    script = (
        f"import sys; {imports}; from transformers import AutoConfig, AutoProcessor; AutoConfig.for_model('vlmkit')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
