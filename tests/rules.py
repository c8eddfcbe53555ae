"""A guard and specifications for tests of the loop: an answer passes if it holds the word its task asks for."""

from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict


class WordGuard:
    name = "word"
    version = "1"
    constraints = "Answer with one word."

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        word = context.specification.metadata["word"]
        if artifact == "crash":
            raise RuntimeError("the checker broke")
        if word in artifact:
            return Verdict(status=ArtifactStatus.ACCEPTED)
        fatal = artifact == "forbidden"
        return Verdict(status=ArtifactStatus.REJECTED, feedback=f"say {word}", cause="word", fatal=fatal)


guard = WordGuard()


def specification(number: int, group: str | None = None) -> Specification:
    return Specification(
        id=f"s{number}", specification=f"Task {number}", group=group or f"g{number}", metadata={"word": f"w{number}"}
    )
