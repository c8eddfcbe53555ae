"""The tree keeps its promises: layers import upwards only, importing is light, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "guardlearn"
LAYERS = (
    "errors digests caches types printing settings predicates templates prompts dag guards generators models engines "
    "chains budgets attempts collect contexts audit amending provenance selections traces rewards weighting "
    "credentials formatting formats jobs training statistics evidence comparing evaluation improvement forgetting "
    "adapters lineage merging exporting report gate loop ablation pipeline demo ui cli __main__"
).split()
HEAVY = (
    "torch", "transformers", "trl", "peft", "datasets", "accelerate", "ray", "sqlalchemy", "scipy", "numpy",
    "matplotlib", "pandas", "pyarrow", "huggingface_hub", "openai", "starlette", "uvicorn", "jinja2",
)  # fmt: skip
TRAINER_MAY_IMPORT = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "unsloth"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def stage(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module named in an import statement of `path`, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_stages_above_it(path):
    own = LAYERS.index(stage(path))
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "guardlearn" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS.index(parts[1]) <= own, f"{path} imports {name}, which stands below it"


def test_training_needs_only_the_standard_library_and_the_trainers():
    for path in (PACKAGE / "training").rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            allowed = top in sys.stdlib_module_names or top in TRAINER_MAY_IMPORT
            ours = name.split(".")[1:2] in (["errors"], ["digests"], ["prompts"], ["training"]) or name == "guardlearn"
            assert allowed or (top == "guardlearn" and ours), f"{path} imports {name}"


def test_prompts_errors_and_digests_are_standard_library_only():
    for name in ("prompts", "templates", "errors", "digests"):
        tops = {module.split(".")[0] for module in imported(PACKAGE / f"{name}.py")} - {"guardlearn"}
        assert tops <= sys.stdlib_module_names


@pytest.mark.parametrize("code", ["import guardlearn", "import guardlearn.cli", "import guardlearn.predicates"])
def test_importing_is_light(code):
    script = f"{code}; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_light():
    script = (
        "import sys; sys.argv = ['guardlearn', '--help']\n"
        "from guardlearn.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names_load():
    import guardlearn

    for name in guardlearn.__all__:
        assert getattr(guardlearn, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = guardlearn.no_such_name


def test_the_map_is_short():
    assert len((ROOT / "AGENTS.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_every_dependency_says_what_for():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").lower()
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    wanted = [name for name in wanted if not name.startswith("guardlearn[")]
    missing = [name for name in wanted if f"`{name.split('>')[0].split('[')[0].lower()}`" not in text]
    assert missing == []
