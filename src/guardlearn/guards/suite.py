"""A pytest suite as a guard whose verdict the artifact cannot reach; guards/checking.py says how, and what it costs."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import answers, checking, feedback
from guardlearn.guards.files import files_digest, files_of, given_files, readable_paths
from guardlearn.guards.process import Limits
from guardlearn.guards.verdicts import accepted, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import GuardContext, Verdict

__all__ = ["PytestGuard"]

_WORDS = {
    "timeout": "The code takes too long.",
    "memory": "The code uses too much memory.",
    "output": "The code writes too much.",
    "crash": "The code ends the program or crashes the interpreter.",
}
_READ_CHARS = 50_000  # of the output, before frames are left out
# frames that are neither the suite's nor the artifact's, with the source lines shown below them
_FRAMES = re.compile(r"^(?:<python>/|<frozen |\.apart/)[^\s:]*:\d+: in .*\n(?:(?:    |E   ?$).*\n)*", re.MULTILINE)
_ERROR_NAME = re.compile(r"guardlearn\.guards\.apart\.proxies\.ArtifactError: ")
_OWN_IMPORT = re.compile(r"^_+ ERROR collecting .*\n(?:(?!_+ ERROR).*\n)*?E   ModuleNotFoundError: (.*)$", re.MULTILINE)


class PytestGuard:
    """Accepts a Python module that passes a pytest suite, each in a sandbox of its own."""

    def __init__(
        self,
        *,
        folder: str = "",
        files: Mapping[str, str] = {},
        metadata_files: str = "files",
        module: str = "answer",
        options: Sequence[str] = ("-q", "--no-header", "--tb=short"),
        name: str = "pytest",
        constraints: str = "",
        extract: answers.Extract = "python",
        feedback_chars: int = feedback.FEEDBACK_CHARS,
        limits: Limits = checking.TEST_LIMITS,
        sandbox: str = "",
        readable: Sequence[str] = (),
        environment: Mapping[str, str] = {},
    ) -> None:
        """Configure the guard; nothing is started.

        Args:
            folder: the suite: tests, conftest.py, data; read once, now.
            files: further files by name, {name: text}.
            metadata_files: key of a specification's metadata that holds files of its own, {name: text}.
            module: name by which the tests import the artifact.
            options: pytest's command line.
            name: stored with each verdict.
            constraints: default Ω.
            extract: what of an answer is judged, see `answers.taken`.
            feedback_chars: most characters of a feedback; the middle of more is left out.
            limits: of each of the two processes.
            sandbox: "auto", "bubblewrap" or "none"; "" takes what the command line or the settings say.
            readable: further folders that tests and artifact may read.
            environment: variables both are given; they have none of this process's.

        Raises:
            UsageError: `module` is no name, the suite is not there, or a file of it is no Python.
        """
        if not module.isidentifier():
            raise UsageError(f"guard {name!r}: module {module!r} is no module name")
        self.name = name
        self.constraints = constraints
        self.files = given_files(folder, files, name)
        if fault := _suite_fault(self.files):
            raise UsageError(f"guard {name!r}: {fault}")
        self.metadata_files, self.module, self.options = metadata_files, module, tuple(options)
        self.extract, self.feedback_chars = extract, feedback_chars
        self.limits = limits
        self.environment = dict(environment)
        settings = vars(self) | {"files": files_digest(self.files)}
        self.version = code_digest(sys.modules[__name__], answers, checking, feedback, settings)
        self.sandbox = sandbox  # where it runs, not what it says: no part of the version
        self.readable = readable_paths(readable, name)

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`.

        Raises:
            GuardError: the specification's own files are not {name: text}.
            SandboxUnavailable: nothing here can hold an artifact.
        """
        began = time.monotonic()
        return signed(self._judge(artifact, context), self, began)

    def _judge(self, artifact: str, context: GuardContext) -> Verdict:
        code, cause, fault = answers.taken(artifact, self.extract)
        if fault:
            return rejected(cause, fault)
        own = files_of(context.specification, self.metadata_files, self.name)
        if fault := _suite_fault(own):
            return no_verdict(fault)
        if fault := answers.python_fault(code):  # as the suite would find, in seconds
            return rejected("syntax", f"The code is not valid Python: {fault}")
        try:
            run = checking.run_tests(
                code,
                self.files | own,
                module=self.module,
                limits=self.limits,
                sandbox=self.sandbox or "auto",
                readable=self.readable,
                environment=self.environment,
                options=self.options,
            )
        except (GuardError, OSError) as error:
            return no_verdict(feedback.clean(str(error), self.feedback_chars))
        return self._verdict(run)

    def _verdict(self, run: checking.TestRun) -> Verdict:
        if run.passed:
            return accepted()
        said = feedback.clean(run.output, max(_READ_CHARS, self.feedback_chars))
        said = feedback.bounded(_ERROR_NAME.sub("", _FRAMES.sub("", said + "\n")).strip("\n"), self.feedback_chars)
        if run.cause == "no tests":
            return no_verdict(f"pytest found no test to run\n{said}")
        if run.cause == "tests" and (missing := _OWN_IMPORT.search(run.output)):
            return no_verdict(f"the suite cannot be loaded: {missing[1]}\n{said}")
        words = _WORDS.get(run.cause)
        return rejected(run.cause, f"{said}\n{words}".strip("\n") if words else said)


def _suite_fault(files: Mapping[str, bytes]) -> str:
    """Return which file of a suite is no Python, or ""."""
    for name, data in files.items():
        if name.endswith(".py"):
            try:
                fault = answers.python_fault(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                fault = f"it is not UTF-8 ({error.reason})"
            if fault:
                return f"file {name} of the suite is not valid Python: {fault}"
    return ""


pytest = PytestGuard()
"""The ready guard: every specification brings its tests."""
