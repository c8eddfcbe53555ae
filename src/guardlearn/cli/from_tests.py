"""Specifications from a pytest suite: each test file is one task, and brings the tests that judge it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from guardlearn.errors import DataError, UsageError
from guardlearn.guards.answers import parse_python
from guardlearn.types import Specification

__all__ = ["DEFAULT_MODULE", "imported_modules", "specifications_of", "suite_files"]

DEFAULT_MODULE = "answer"
_LEFT_OUT = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".git"}
_NOT_JUDGED = {"pytest", "hypothesis", "conftest"}
_MOST_SUPPORT_BYTES = 1 << 20


def suite_files(folder: Path) -> dict[str, str]:
    """Return the texts of a suite's files by relative path.

    Raises:
        UsageError: there is no folder.
        DataError: a file is no text, or what lies beside the tests is larger than 1 MiB in all.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give the folder of a pytest suite with --tests")
    files: dict[str, str] = {}
    size = 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or _LEFT_OUT & set(name.parts):
            continue
        size += 0 if _is_test(name.as_posix()) else path.stat().st_size
        if size > _MOST_SUPPORT_BYTES:
            raise DataError(
                f"{folder} holds more than 1 MiB beside its tests, up to {name}, which every specification would hold; "
                "move that to another folder and name it as `folder` in guardlearn.toml"
            )
        try:
            files[name.as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is no UTF-8 text (byte {error.start}); move it to another folder and name that as `folder` in "
                "guardlearn.toml"
            ) from None
    return files


def specifications_of(files: Mapping[str, str], module: str) -> list[Specification]:
    """Return a specification for each test file of a suite.

    Ψ is the file's docstring; a file without one is shown itself. Whatever is no test (conftest.py, data) comes with
    each of them.

    Args:
        files: texts by relative path.
        module: the name that tests import the answer by.

    Raises:
        UsageError: there is no test.
        DataError: a test file is no Python.
    """
    support = {name: text for name, text in files.items() if not _is_test(name)}
    found = []
    for name, text in files.items():
        if not _is_test(name):
            continue
        tree = parse_python(text)
        if tree is None:
            raise DataError(f"test file {name} is no valid Python, so it cannot judge anything; correct it")
        task = ast.get_docstring(tree) or (
            f"Write the Python module `{module}`, so that these tests pass:\n\n```python\n{text.rstrip()}\n```"
        )
        path = PurePosixPath(name)
        label = str(path.with_name(path.stem.removeprefix("test_").removesuffix("_test") or path.stem))
        metadata = {"files": {name: text, **support}}
        found.append(Specification(id=label, specification=task, group=label, metadata=metadata))
    if not found:
        raise UsageError("there is no test_*.py or *_test.py; give the folder of a pytest suite with --tests")
    return found


def imported_modules(files: Mapping[str, str]) -> set[str]:
    """Return what every test file imports beside the standard library, pytest and files of the suite itself."""
    own = {PurePosixPath(name).stem for name in files}
    trees = [parse_python(text) for name, text in files.items() if _is_test(name)]
    imports = [_imports(tree) - own for tree in trees if tree]
    return set.intersection(*imports) if imports else set()


def _is_test(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".py" and (path.stem.startswith("test_") or path.stem.endswith("_test"))


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names | _NOT_JUDGED}
