"""Any program as a guard: the artifact goes in as a file or on standard input, the exit code becomes the verdict.

    exit code in `accept`   accepted
    exit code in `reject`   rejected, with the cleaned output as feedback; in `fatal`: beyond repair
    over a limit            rejected: the artifact made it so ("timeout", "memory", "output")
    anything else           no verdict: a missing program, a usage error, a crash of the checker

A program that runs the artifact's code belongs in the sandbox, which is the default (guards/sandbox.py).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import answers, feedback, patterns
from guardlearn.guards.files import files_digest, files_of, given_files, inside, readable_paths
from guardlearn.guards.process import Limits, Outcome, ProcessResult
from guardlearn.guards.sandbox import run_sandboxed
from guardlearn.guards.verdicts import accepted, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import GuardContext, Verdict

__all__ = ["COMMAND_LIMITS", "CommandGuard"]

COMMAND_LIMITS = Limits(
    wall_seconds=60.0,
    cpu_seconds=30,
    memory_bytes=2 << 30,
    file_bytes=16 << 20,
    open_files=256,
    processes=64,
    output_bytes=1 << 20,
)
"""What a checker and the artifact it runs may use, unless the guard says otherwise."""

_LIMIT_WORDS = {
    Outcome.TIMEOUT: "took too long",
    Outcome.OUTPUT: "wrote too much",
    Outcome.MEMORY: "used too much memory",
}


class CommandGuard:
    """A program that judges artifacts."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str = "",
        constraints: str = "",
        file: str = "artifact.txt",
        stdin: bool = False,
        extract: answers.Extract = "",
        folder: str = "",
        files: Mapping[str, str] = {},
        metadata_files: str = "files",
        accept: Sequence[int] = (0,),
        reject: Sequence[int] = (1,),
        fatal: Sequence[int] = (),
        accept_output: str = "",
        reject_output: str = "",
        keep: str = "",
        feedback_chars: int = feedback.FEEDBACK_CHARS,
        limits: Limits = COMMAND_LIMITS,
        sandbox: str = "",
        readable: Sequence[str] = (),
        environment: Mapping[str, str] = {},
    ) -> None:
        """Configure the guard; no program is started.

        Args:
            command: program and arguments; "python" is the interpreter that runs guardlearn, other programs are looked
                up on PATH.
            name: stored with each verdict; "" takes the program's.
            constraints: default Ω.
            file: name of the artifact's file in the work folder, where the program is started.
            stdin: whether the artifact comes on standard input; then there is no file of it.
            extract: what of an answer is judged, see `answers.taken`.
            folder: its files lie in the work folder too (tests, schemas, configuration); read once, now.
            files: further files by name, {name: text}.
            metadata_files: key of a specification's metadata that holds files of its own, {name: text}.
            accept: exit codes that accept; -n is signal n.
            reject: exit codes that reject.
            fatal: exit codes that reject beyond repair.
            accept_output: regular expression that the output must match where an exit code accepts, else it rejects:
                the program was made to end early.
            reject_output: regular expression that the output must match where an exit code rejects, else there is no
                verdict: for tools with one exit code for a wrong artifact and for their own failures.
            keep: regular expression that picks the lines of a feedback.
            feedback_chars: most characters of a feedback; the middle of more is left out.
            limits: of the whole process tree.
            sandbox: "auto", "bubblewrap" or "none"; "" takes what the command line or the settings say.
            readable: further folders the program may read.
            environment: variables it is given; it has none of this process's.

        Raises:
            UsageError: the settings contradict themselves, or name files that are not there.
        """
        if not command or not all(command[:1]):
            raise UsageError('a command guard needs a command; write command = ["program", "argument", …]')
        self.name = name or _program(command)
        self.constraints = constraints
        self.command = tuple(command)
        self.file, self.stdin, self.extract = inside(file, self.name), stdin, extract
        self.files = given_files(folder, files, self.name)
        self.metadata_files = metadata_files
        self.accept, self.reject, self.fatal = sorted(set(accept)), sorted({*reject, *fatal}), sorted(set(fatal))
        self.accept_output, self.reject_output, self.keep = accept_output, reject_output, keep
        self.feedback_chars = feedback_chars
        self.limits = limits
        self.environment = {
            key: str(Path(text).expanduser()) if text[:1] == "~" else text for key, text in environment.items()
        }
        self._check()
        self.version = code_digest(sys.modules[__name__], answers, feedback, self._settings())
        self.sandbox = sandbox  # where it runs, not what it says: no part of the version
        self.readable = readable_paths(readable, self.name)

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`.

        Raises:
            GuardError: the specification's own files are not {name: text}.
            SandboxUnavailable: nothing here can hold what the program runs.
        """
        began = time.monotonic()
        return signed(self._judge(artifact, context), self, began)

    def _judge(self, artifact: str, context: GuardContext) -> Verdict:
        text, cause, fault = answers.taken(artifact, self.extract)
        if fault:
            return rejected(cause, fault)
        files = self.files | files_of(context.specification, self.metadata_files, self.name)
        if not self.stdin:
            files[self.file] = text.encode()
        try:
            result = run_sandboxed(
                [_found(self.command[0]), *self.command[1:]],
                files=files,
                stdin=text.encode() if self.stdin else b"",
                limits=self.limits,
                sandbox=self.sandbox or "auto",
                readable=self.readable,
                environment=self.environment,
            )
            return self._verdict(result)
        except (GuardError, OSError) as error:
            return no_verdict(str(error))

    def _verdict(self, result: ProcessResult) -> Verdict:
        output = "\n".join(part.decode("utf-8", "replace").strip("\n") for part in (result.stdout, result.stderr))
        said = feedback.clean(output, self.feedback_chars, keep=self.keep)
        if result.outcome not in {Outcome.EXITED, Outcome.SIGNALLED}:
            words = f"{_program(self.command)} was stopped: it {_LIMIT_WORDS[result.outcome]}."
            return rejected(result.outcome.value, f"{said}\n{words}".lstrip("\n"))
        code = result.returncode
        if code in self.accept:
            if self.accept_output and patterns.search(self.accept_output, [output]) == [None]:
                return rejected("ended early", f"{said}\nThe check was ended before it was done.".lstrip("\n"))
            return accepted()
        if code in self.reject and (not self.reject_output or patterns.search(self.reject_output, [output]) != [None]):
            return rejected(_program(self.command), said, fatal=code in self.fatal)
        ended = f"exit code {code}" if code >= 0 else f"signal {-code}"
        return no_verdict(f"{_program(self.command)} failed ({ended})\n{said}".rstrip("\n"))

    def _settings(self) -> dict[str, Any]:
        return vars(self) | {"files": files_digest(self.files)}

    def _check(self) -> None:
        both = set(self.accept) & set(self.reject)
        if both:
            raise UsageError(f"guard {self.name!r}: exit code {min(both)} cannot both accept and reject")
        if not self.accept or not self.reject:
            raise UsageError(f"guard {self.name!r} needs exit codes that accept and exit codes that reject")
        if self.feedback_chars < 1:
            raise UsageError(f"guard {self.name!r}: feedback_chars is {self.feedback_chars}; it must be at least 1")
        for field in ("accept_output", "reject_output", "keep"):
            patterns.checked(getattr(self, field), f"guard {self.name!r}: {field}")


def _program(command: Sequence[str]) -> str:
    """Return what a command is called: the module of `python -m module`, else the program."""
    name = PurePosixPath(command[0]).name
    if name.startswith("python") and "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return name


def _found(program: str) -> str:
    """Return where a program is: tools installed beside the interpreter come first, activated or not."""
    beside = shutil.which(program, path=str(Path(sys.executable).parent)) if "/" not in program else None
    return program if program in {"python", "python3"} else beside or program
