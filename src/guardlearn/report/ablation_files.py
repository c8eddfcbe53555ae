"""An ablation as files: `ablation.json`, `ablation.html`, `ablation.md`, each whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from guardlearn.errors import DataError
from guardlearn.report.ablation import Ablation
from guardlearn.report.ablation_page import ablation_page, markdown

__all__ = ["ABLATION", "PAGE", "load_ablation", "write_ablation"]

ABLATION = "ablation.json"
PAGE = "ablation.html"
_MARKDOWN = "ablation.md"


def write_ablation(folder: Path, ablation: Ablation) -> Path:
    """Write the three files into `folder`; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / ABLATION, json.dumps(msgspec.to_builtins(ablation), indent=2) + "\n")
    _replace(folder / _MARKDOWN, markdown(ablation))
    _replace(folder / PAGE, ablation_page(ablation))
    return folder / PAGE


def load_ablation(path: Path) -> Ablation:
    """Read what an ablation came to.

    Raises:
        DataError: no such file, or it holds something else.
    """
    try:
        return msgspec.convert(json.loads(path.read_bytes()), type=Ablation)
    except FileNotFoundError:
        raise DataError(f"no ablation at {path}; run: guardlearn ablate") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{path} is no ablation of guardlearn ({error}); run it again") from error


def _replace(path: Path, content: str) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    # a name may hold what UTF-8 cannot; it is then shown escaped rather than not at all
    staged.write_bytes(content.encode("utf-8", "backslashreplace"))
    staged.replace(path)
