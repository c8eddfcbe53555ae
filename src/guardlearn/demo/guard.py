"""The demo's guard: a small Python function must have its signature, the house style, and the right results.

Cheap checks come first: find the code, parse it, compare the signature, check the docstring (pydocstyle's D200: one
line, D400: ends with a period, and as house rule in D401's spirit: starts with "Return"). Only then are the cases run,
in a sandbox (guards/sandbox.py). The process in it is told the arguments and never the expected results: it sends
back values, which are compared here. So an answer that writes into the channel can gain nothing but a wrong value.

How a retry is asked decides whether it succeeds: naming the style's rules got the demo's model nowhere, an example
docstring that may be copied word for word lets about half of its retries pass.
"""

from __future__ import annotations

import ast
import json
import marshal
import math
import re
import secrets
import sys
import time
from typing import Any

from guardlearn.errors import GuardError
from guardlearn.guards import answers, code_digest, process
from guardlearn.guards.answers import extract_code, parse_python
from guardlearn.guards.process import Limits, Outcome, ProcessResult
from guardlearn.guards.sandbox import run_python
from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict

__all__ = ["HouseStyle", "extract_code", "house_style"]

CONSTRAINTS = "You are a Python programmer. Reply with code only. Use type hints and a docstring."
STYLE_FEEDBACK = 'House style: the body must start with a one-line docstring such as """Return the result."""'
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class HouseStyle:
    """The guard; it reads `metadata.signature` and `metadata.cases` of a specification.

    `signature` is "f(x: int) -> int"; `cases` is [[[arguments…], expected], …] in JSON values.
    """

    name = "guardlearn.demo:house_style"
    constraints = CONSTRAINTS

    def __init__(self, *, style: bool = True, limits: Limits = Limits(), sandbox: str = "auto") -> None:
        """Configure the guard.

        Args:
            style: whether the docstring is judged; off, it measures whether a model can code at all.
            limits: of the process that runs the cases.
            sandbox: where it runs, see `guardlearn.guards.sandbox.choose`; no part of the version.
        """
        self.style = style
        self.limits = limits
        self.sandbox = sandbox
        self.version = code_digest(sys.modules[__name__], answers, process, style, limits)

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge an answer.

        Raises:
            GuardError: the specification's metadata does not say what to check.
            SandboxUnavailable: there is no sandbox to run the cases in.
        """
        began = time.monotonic()
        signature, cases = _task(context.specification)
        cause, feedback = self._reject(artifact, signature, cases)
        status = ArtifactStatus.REJECTED if cause else ArtifactStatus.ACCEPTED
        if cause == _NO_VERDICT:
            status = ArtifactStatus.PENDING
        return Verdict(
            status=status,
            feedback=feedback,
            cause=cause,
            guard=self.name,
            guard_version=self.version,
            seconds=time.monotonic() - began,
        )

    def _reject(self, artifact: str, signature: str, cases: list[Any]) -> tuple[str, str]:
        """Return (cause, feedback) of the first check that fails, or ("", "")."""
        header = f"def {signature}:"
        code = extract_code(artifact)
        if not code:
            return "no code", f"Reply with the code of the function `{header}` in a Python code block."
        tree = parse_python(code)
        if tree is None:
            return "syntax", f"The code is not valid Python. Write the whole function, starting with `{header}`."
        wanted = parse_python(f"{header} ...")
        assert wanted is not None
        function = _find(tree, wanted.body[0].name)  # type: ignore[attr-defined]
        if function is None or not _same_signature(function, wanted.body[0]):
            return "signature", f"The function must start with exactly `{header}`."
        if self.style and not _has_house_style(function):
            return "style", STYLE_FEEDBACK
        return _judge_cases(code, function.name, _imported(tree), cases, self.limits, self.sandbox)


_NO_VERDICT = "no verdict"


def _task(specification: Specification) -> tuple[str, list[Any]]:
    signature, cases = specification.metadata.get("signature"), specification.metadata.get("cases")
    tree = parse_python(f"def {signature}: ...") if isinstance(signature, str) else None
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise GuardError(
            f"specification {specification.id!r}: metadata.signature is {signature!r}; house_style needs "
            'one such as "f(x: int) -> int"'
        )
    whole = isinstance(cases, list) and all(
        isinstance(case, list) and len(case) == 2 and isinstance(case[0], list) for case in cases
    )
    if not whole or not cases:
        raise GuardError(
            f"specification {specification.id!r}: metadata.cases is {str(cases)[:60]}; house_style needs "
            "[[[argument, …], expected], …]"
        )
    return str(signature), list(cases)


def _find(tree: ast.Module, name: str) -> _Function | None:
    """Return the function called `name`; of several, the last, as Python does."""
    found = [node for node in tree.body if isinstance(node, _Function) and node.name == name]
    return found[-1] if found else None


def _same_signature(function: _Function, wanted: ast.stmt) -> bool:
    if not isinstance(function, ast.FunctionDef) or not isinstance(wanted, ast.FunctionDef):
        return False
    try:
        ours, theirs = (
            ast.dump(node.args) + (ast.dump(node.returns) if node.returns else "") for node in (function, wanted)
        )
    except RecursionError:  # an annotation nested absurdly deep
        return False
    return ours == theirs


def _has_house_style(function: _Function) -> bool:
    first = function.body[0]
    docstring = ast.get_docstring(function, clean=False)
    if docstring is None or first.lineno != first.end_lineno or "\n" in docstring:
        return False
    return bool(re.match(r"Return\b", docstring)) and docstring.endswith(".")


def _imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


# Runs in the limited process. Results leave on a copy of standard output that the answer's own prints do not reach;
# each line carries a nonce, so that whatever else is written there is told apart. Only exact built-in types are
# encoded, by hand: importing json would double the time of a call.
_HARNESS = r"""
import marshal, os, sys
from _json import encode_basestring_ascii as text
nonce, source, name, calls = marshal.loads(sys.stdin.buffer.read())
channel = os.dup(1)
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
kinds = {bool: lambda v: "true" if v else "false", int: repr, float: repr, type(None): lambda v: "null", str: text}
def encode(value):
    kind = type(value)
    if kind in kinds:
        out = kinds[kind](value)
        return {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(out, out)
    if kind is list:
        return "[" + ", ".join(map(encode, value)) + "]"
    if kind in (tuple, dict, set):
        return '{"%s": %s}' % (kind.__name__, encode(list(value.items()) if kind is dict else list(value)))
    return '{"other": %s}' % text(kind.__name__)
def send(kind, body):
    data = ("%s %s %s\n" % (nonce, kind, body)).encode("ascii")
    while data:
        data = data[os.write(channel, data):]
def attempt(kind, action):
    try:
        send(kind, action())
    except MemoryError:
        send("memory", "null")
    except BaseException as error:
        send("error", text(type(error).__name__ + ": " + str(error)[:200]))
    else:
        return True
space = {"__name__": "answer"}
def load():
    exec(compile(source, "<answer>", "exec"), space)
    return "null"
send("ready", "null")
if attempt("loaded", load):
    for arguments in calls:
        attempt("value", lambda: encode(space[name](*arguments)))
os._exit(0)
"""


def _judge_cases(
    code: str, name: str, imports: set[str], cases: list[Any], limits: Limits, sandbox: str
) -> tuple[str, str]:
    """Return (cause, feedback) of the first case that goes wrong, or ("", "")."""
    nonce = secrets.token_hex(8)
    payload = marshal.dumps((nonce, code, name, [arguments for arguments, _ in cases]))
    try:
        result = run_python(_HARNESS, payload, limits, preload={"_json", *imports}, sandbox=sandbox)
    except GuardError as error:
        return _NO_VERDICT, f"the process for the cases did not start: {error}"
    lines = [line.split(" ", 2)[1:] for line in _lines(result) if line.startswith(f"{nonce} ")]
    if not lines or lines[0][0] != "ready":
        return _NO_VERDICT, f"the process for the cases ended before it was ready ({result.outcome.value})"
    answers = lines[1:]
    if answers and answers[0][0] == "loaded":
        answers = answers[1:]
        for (arguments, expected), (kind, body) in zip(cases, answers, strict=False):
            cause, what = _compare(kind, body, expected)
            if cause:
                call = f"{name}({', '.join(map(repr, arguments))})"
                return cause, f"Wrong result: `{call}` must return {expected!r}, but it {what}."
    elif answers:
        kind, body = answers[0]
        cause, what = _compare(kind, body, None)
        return cause, f"The code fails when it is loaded: it {what}."
    if len(answers) >= len(cases) and result.outcome is Outcome.EXITED:
        return "", ""
    return _LIMIT_CAUSES[result.outcome], f"The code {_LIMIT_WORDS[result.outcome]}. Write a simple function."


_LIMIT_CAUSES = {
    Outcome.EXITED: "cases",
    Outcome.SIGNALLED: "crash",
    Outcome.TIMEOUT: "timeout",
    Outcome.OUTPUT: "output",
    Outcome.MEMORY: "memory",
}
_LIMIT_WORDS = {
    Outcome.EXITED: "ends the program",
    Outcome.SIGNALLED: "crashes the interpreter",
    Outcome.TIMEOUT: "takes too long",
    Outcome.OUTPUT: "returns too much",
    Outcome.MEMORY: "uses too much memory",
}


def _lines(result: ProcessResult) -> list[str]:
    """Return what was written, without a last line that was cut."""
    return result.stdout.decode("ascii", "replace").split("\n")[:-1]


def _compare(kind: str, body: str, expected: Any) -> tuple[str, str]:
    """Return (cause, what it did) of one call, or ("", "")."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):  # written by the answer itself: ours is always JSON
        return "cases", "returned nothing readable"
    if kind == "memory":
        return "memory", "used too much memory"
    if kind != "value":
        return "cases", f"raised {' '.join(str(value).split())}"
    return ("", "") if _equal(value, expected) else ("cases", f"returned {_shown(value)}")


def _equal(value: Any, expected: Any) -> bool:
    """Compare by value and type: True is no 1; an int may stand for a float (PEP 484), floats to 1e-9."""
    if isinstance(expected, float) and type(value) in {int, float}:
        return math.isclose(value, expected, rel_tol=1e-9)
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    return type(value) is type(expected) and bool(value == expected)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        kind, inside = next(iter(value.items()))
        value = f"a value of type {inside}" if kind == "other" else f"a {kind}"
        return str(value)
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


house_style = HouseStyle()
