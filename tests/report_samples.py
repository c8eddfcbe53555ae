"""A report with something in every section, made from words; whatever others may have written ends with `odd`."""

from __future__ import annotations

import html.parser
from typing import Any

import msgspec

from evidences import evidence_of, spec
from guardlearn.forgetting import Divergence, Forgetting, TextLoss
from guardlearn.report import Report, RoundStory
from guardlearn.report.history import RoundRow
from guardlearn.report.masks import MaskedRow, MaskedToken
from guardlearn.report.round_stories import Condition, OtherActionPair
from guardlearn.report.stories import Story, TraceStory
from guardlearn.types import ArtifactStatus, RepositoryItem

SECTIONS = (
    "first-attempts before-and-after action-pairs limits training forgetting other-action-pairs decision rounds "
    "dropped chains manifest specifications measured-with"
).split()
"""Ids of a page's sections, in order, where there is something in each."""

FIRST = "def f(x):\n    return 1 / x\n"
SECOND = "def f(x):\n    return x and 1 / x\n"
LAST = "def f(x):\n    return 1 / x if x else 0\n"


def report(odd: str = "") -> Report:
    """Return the report; `odd` stands in every text that somebody else wrote."""
    return Report(evidence=evidence(odd), story=story(odd), limits=(f"Families are kin.{odd}",), round_story=told(odd))


def evidence(odd: str = "") -> Any:
    """Return twelve groups of two, six of which the candidate learned, in two action pairs."""
    names = [f"g{group:02}.{number}{odd}" for group in range(12) for number in range(2)]
    specs = [spec(name, group=f"{name[:3]}{odd}", action_pair_id=f"pair {name[4]}{odd}") for name in names]
    before = {name: [["fail", "fail", "pass"]] for name in names}
    after = before | {name: [["pass"]] for name in names[:12]}
    found = evidence_of(before, after, specs=specs, cost=(20, 1.5), guard=f"style{odd}", leakage=f"not checked{odd}")
    causes = {
        side: msgspec.structs.replace(getattr(found, side), failures={f"style{odd}": 12})
        for side in ("base", "candidate")
    }
    return msgspec.structs.replace(found, model=f"m{odd}", drops={f"no verdict{odd}": 1}, **causes)


def item(name: str, odd: str = "", **given: Any) -> RepositoryItem:
    """Return one attempt."""
    about = {"specification": f"Divide 1 by x.{odd}", "guard": f"tests{odd}", "action_pair_id": f"divide{odd}"}
    return RepositoryItem(**{"id": f"{name}{odd}", "artifact": LAST, "status": ArtifactStatus.ACCEPTED} | about | given)


def chain(odd: str = "") -> tuple[RepositoryItem, ...]:
    """Return two rejections, each with feedback, and what was accepted in the end."""
    rejected: dict[str, Any] = {"status": ArtifactStatus.REJECTED, "cause": f"cases{odd}"}
    return (
        item("a", odd, artifact=FIRST + odd, feedback=f"f(0) fails{odd}", **rejected),
        item("b", odd, artifact=SECOND + odd, feedback=f"f(0) is 0, say so{odd}", parent_id=f"a{odd}", **rejected),
        item("c", odd, artifact=LAST + odd, parent_id=f"b{odd}"),
    )


def row(odd: str = "") -> MaskedRow:
    """Return a training row: a prompt, what is learned, the end token."""
    words = [("<s>", False, True, False), (f"Divide 1 by x.{odd}\n", False, False, False)]
    words += [(LAST, True, False, False), (f"# done{odd}", True, False, False), ("</s>", True, True, True)]
    tokens = tuple(
        MaskedToken(text=text, tokens=1, loss=loss, special=special, end=end) for text, loss, special, end in words
    )
    return MaskedRow(id=f"c{odd}", view=f"repair{odd}", weight=0.5, tokens=tokens)


def story(odd: str = "") -> Story:
    """Return how the adapter was made: two stages, one chain, things dropped."""
    stages = [
        {
            "method": f"sft{odd}",
            "tokens_per_second": 280.0,
            "completion_tokens_per_second": 105.0,
            "seconds_a_step": 1.6,
        },
        {"method": "kto", "tokens_per_second": 140.0, "completion_tokens_per_second": None, "seconds_a_step": 2.0},
    ]
    return Story(
        manifest={"predicate": f"refinement(){odd}", "rows": 3, "item_ids": ["c"], f"more{odd}": {"odd": [odd or "x"]}},
        result={"stages": stages, "validation_loss": {"base": 1.5, "trained": 0.25}, "backend": f"trl{odd}"},
        settings={"views": f"repair{odd}"},
        losses=((1, 2.0), (2, 1.0), (3, 0.5)),
        looks=((2, 0.9),),
        dropped={f"held out{odd}": 7},
        dropped_rows={f"too long{odd}": 2},
        traces=(TraceStory(attempts=chain(odd), rows=(row(odd),)),),
    )


def told(odd: str = "") -> RoundStory:
    """Return a round that was refused for what it forgot, after one that was promoted."""
    rows = tuple(
        RoundRow(
            round=number,
            decision=decision,
            reason=f"because{odd}",
            new_traces=9,
            rows=12,
            adapter="ab" * 32,
            look=number,
            incumbent=(0.2, 0.1, 0.3),
            candidate=(0.6, 0.5, 0.7),
            loss_rise=0.01 * number,
            divergence=0.2,
            others={f"prose{odd}": -0.05},
        )
        for number, decision in ((1, "promoted"), (2, "refused"))
    )
    return RoundStory(
        learner=f"me{odd}",
        round=2,
        state="refused",
        reason=f"refused by general loss{odd}",
        look=2,
        checked=f"answers differ{odd}",
        conditions=(
            Condition(name=f"superiority{odd}", passed=True, found=f"+50 points{odd}", needed="p < 0.01"),
            Condition(name="general loss", passed=False, found=f"+0.2{odd}", needed="below 0.05"),
        ),
        forgetting=forgetting(odd),
        others=(
            OtherActionPair(
                name=f"prose{odd}", specs=8, groups=4, base=0.9, candidate=0.85, difference=-0.05, low=-0.2, high=0.1
            ),
        ),
        unmeasured={f"hidden guards{odd}": "none was named"},
        rounds=rows,
        measured_on={1: "d" * 64, 2: "e" * 64},
    )


def forgetting(odd: str = "") -> Forgetting:
    """Return a loss that rose by 0.2 nats on one text, and a divergence on one prompt."""
    return Forgetting(
        loss_base=2.0,
        loss_candidate=2.2,
        loss_rise=0.2,
        kl=0.125,
        rise_by_group={f"news{odd}": 0.3, f"law{odd}": 0.1},
        kl_by_group={f"g{odd}": 0.125},
        texts=[TextLoss(text="t", group=f"news{odd}", tokens=9, base=2.0, candidate=2.2)],
        prompts=[Divergence(id=f"p{odd}", group=f"g{odd}", tokens=9, kl=0.125)],
        texts_digest="1" * 64,
        prompts_digest="2" * 64,
    )


class Words(html.parser.HTMLParser):
    """What a page says, by the id of its section ("" before the first); and every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open, self._styled = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._styled = tag == "style"
        if tag == "section":
            self._open = dict(attrs)["id"] or ""
            self.sections[self._open] = ""

    def handle_endtag(self, tag: str) -> None:
        self._styled = False
        if tag == "section":
            self._open = ""

    def handle_data(self, data: str) -> None:
        if not self._styled:
            self.sections[self._open] += data + " "
