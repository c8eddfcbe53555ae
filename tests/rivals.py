"""Generators that answer by the adapter in use, and guards over words: for tests of incumbent against candidate."""

from __future__ import annotations

import hashlib

from guardlearn.generators import ReplayGenerator
from guardlearn.types import ArtifactStatus, Specification, Verdict

LIVE, NEXT = "live", "next"


class Rivals(ReplayGenerator):
    """Answers as `ReplayGenerator` does, with the answers of the adapter in use: a name, or None for the bare base."""

    def __init__(self, **by_adapter):
        self._by_adapter = {None if name == "base" else name: answers for name, answers in by_adapter.items()}
        self.used = []
        super().__init__(self._choose)

    def _choose(self, request):
        answers = self._by_adapter[self._adapter]
        return answers(request) if callable(answers) else ReplayGenerator(answers).generate([request])[0].text

    def use_adapter(self, adapter):
        super().use_adapter(adapter)
        self.used.append(self._adapter)


class WordGuard:
    """Accepts answers that hold `word`; "silent" gets no verdict; what else it says is the cause of a rejection."""

    def __init__(self, word="good", name="word"):
        self.word, self.name, self.version, self.constraints = word, name, f"{word} 1", "Say it."
        self.judged = []

    def __call__(self, artifact, context):
        self.judged.append((context.specification.id, artifact))
        if "silent" in artifact.split("+"):
            raise RuntimeError("the checker is down")
        accepted = self.word in artifact.split("+")
        return Verdict(
            status=ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED,
            feedback="" if accepted else f"{self.name} misses {self.word}",
            cause="" if accepted else f"no {self.word}",
        )


def specifications(groups, per_group=2, pair="default", letter="s"):
    return [
        Specification(
            id=f"{letter}{g}.{n}", specification=f"{letter} task {g}.{n}", group=f"{letter}{g}", action_pair_id=pair
        )
        for g in range(groups)
        for n in range(per_group)
    ]


def drawn(share, word="good", otherwise="bad"):
    """Return answers by the request's key alone, as common random numbers give."""

    def answer(request):
        number = int(hashlib.sha256(request.key.encode()).hexdigest()[:8], 16) / 2**32
        return word if number < share else otherwise

    return answer
