"""Renderings of one evidence object: nothing left out, nothing unescaped, nothing fetched."""

from __future__ import annotations

import html.parser
import io
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from guardlearn import report
from guardlearn.adapters import publish
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import DataError, JobError, ModelError
from guardlearn.evaluation import evaluate
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.prompts import Renderer
from guardlearn.report.masks import MaskedRow, MaskedToken, masked_rows
from guardlearn.report.stories import Story, TraceStory
from guardlearn.traces import extract_traces
from guardlearn.training.job import train_job
from guardlearn.training.rows import tokenise
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, Specification, Verdict

HOSTILE = "<script>alert('x')</script> & \"[bold]\" \ud800"


class StyleGuard:
    name = "style<b>"
    version = "v<1>"
    constraints = ""

    def __call__(self, artifact, context):
        accepted = artifact == "good"
        status = ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED
        return Verdict(status=status, cause="" if accepted else artifact)


def evidence_of(folder, base, candidate, adapter="adapter"):
    specs = [Specification(id=name, specification=name, group=name[:3]) for name in base]
    generator = ReplayGenerator(base, candidate)
    return evaluate(specs, generator, StyleGuard(), adapter=adapter, renderer=Renderer(), folder=folder)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    base = {f"g{n:02}.{k}": ["style"] * 3 + ["good"] for n in range(37) for k in range(3)}
    base["g00.0"] = ["good"]
    candidate = {name: ["good"] for name in base} | {f"g{n:02}.1": ["cases", "good"] for n in range(6)}
    return evidence_of(tmp_path_factory.mktemp("evaluation"), base, candidate)


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes, text and token rows, and checks that elements nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], set(), [], []
        self.figures = []
        """What each drawing says in words."""
        self.rows = []
        """[text without loss, text with loss, [end tokens]] of each training row."""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.extend(attrs)
        given = dict(attrs)
        if given.get("role") == "img":
            self.figures.append(given["aria-label"])
        if (tag, given.get("class")) == ("div", "code tokens"):
            self.rows.append(["", "", []])
        if "end" in given.get("class", "").split() and self._in_row():
            self.rows[-1][2].append("")
        if tag != "meta":
            self.open.append((tag, given.get("class") or ""))

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.extend(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "style":
            return
        self.words.append(data)
        if self._in_row():
            coloured = any(tag == "mark" for tag, _ in self.open)
            self.rows[-1][coloured] += data
            if any("end" in style.split() for _, style in self.open):
                self.rows[-1][2][-1] += data

    def _in_row(self):
        return ("div", "code tokens") in self.open

    @property
    def text(self):
        return " ".join(self.words)


TASKS = [f"Write the function f{n}, which returns {word}." for n, word in enumerate("one two ten nil pi tau".split())]
RETRIES = [1, 1, 2, 2, 3, 4]


def item(identity, **given):
    defaults = {"artifact": "a", "specification": "s", "status": ArtifactStatus.ACCEPTED}
    return RepositoryItem(id=identity, **defaults | given)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """ℛ with a chain a task, as many rejections as RETRIES says, the first task twice, and one accepted at once."""
    path = tmp_path_factory.mktemp("report") / "runs.db"
    with ArtifactDAG.create(path) as dag:
        dag.assign_side("family", Side.TRAIN)
        moment, count = datetime(2026, 1, 1, tzinfo=UTC), 0
        for task, retries in zip([*TASKS, TASKS[0], TASKS[1]], [*RETRIES, 1, 0], strict=True):
            parent = None
            for attempt in range(retries + 1):
                count += 1
                status = ArtifactStatus.ACCEPTED if attempt == retries else ArtifactStatus.REJECTED
                said = (
                    ""
                    if status is ArtifactStatus.ACCEPTED
                    else f"no docstring ({attempt}){' please' * 8 * (attempt > 2)}"
                )
                artifact = f"def f():\n\treturn {count}  # naïve 🦜\n"
                given = {"parent_id": parent, "feedback": said, "created_at": moment + timedelta(seconds=count)}
                given |= {"specification": task, "group": "family", "status": status, "artifact": artifact}
                parent = f"i{count:02}"
                dag.append(item(parent, **given))
    return path


@pytest.fixture(scope="module")
def job(repository, tiny_model, tmp_path_factory):
    """A finished job over every accepted item: two training steps."""
    folder = tmp_path_factory.mktemp("job") / "job"
    with ArtifactDAG.load(repository, read_only=True) as dag:
        extraction = extract_traces(dag, "all")
    write_job(folder, extraction, tiny_model, TrainingConfig(max_steps=2, max_length=80))
    train_job(folder, tiny_model)
    return folder


@pytest.fixture
def story(repository, job, tiny_model):
    """Gathers the job's story."""

    def gather(**given):
        with ArtifactDAG.load(repository, read_only=True) as dag:
            return report.story(dag, job, tiny_model, **given)

    return gather


@pytest.fixture(scope="module")
def told():
    """A story with losses and nothing else."""
    result = {"validation_loss": {"base": 1.5, "trained": 0.0625}}
    return Story(manifest={"rows": 3}, result=result, losses=((1, 2.0), (2, 0.5), (3, 0.125)))


def printed(evidence):
    out = io.StringIO()
    report.terminal(evidence, Console(file=out, width=120, no_color=True))
    return out.getvalue()


def test_headline_is_one_plain_sentence(evidence):
    assert report.headline(evidence) == (
        "First attempts that pass: 1 % → 95 % (+94 points, 95 % interval 89 to 99, by group)"
    )


def test_headline_claims_no_none_and_no_all_by_rounding():
    shown = [report.words.percent(share) for share in (0.0, 0.001, 0.004, 0.03, 0.996, 0.9999, 1.0, None)]
    assert shown == ["0 %", "0.1 %", "0.4 %", "3 %", "99.6 %", "99.9 %", "100 %", "–"]


def test_terminal_shows_figures_causes_and_the_comparison(evidence):
    text = printed(evidence)
    for expected in (
        report.headline(evidence),
        "111 specifications in 37 groups",
        "Attempts needed, at most 4: 3.97 → 1.05",
        "1 of 111",
        "105 of 111",
        "style",
        "cases",
        "p < 0.0001",
        "smallest difference",
        "the candidate passes first time more often",
        "note: Leakage was not checked",
    ):
        assert expected in text


def test_terminal_prints_identifiers_as_they_are_not_as_markup(tmp_path):
    shown = printed(evidence_of(tmp_path, {"a": ["[red]oops[/red]"]}, {"a": ["good"]}))
    assert "[red]oops[/red]" in shown
    assert "no interval" in shown


def test_page_is_whole_needs_no_network_and_no_script(evidence, told):
    for page in (report.html(evidence), report.html(evidence, story=told)):
        reader = Reader(page)
        assert not {"script", "img", "link", "iframe", "object", "use", "image"} & reader.tags
        assert not any(name.startswith("on") or name == "src" for name, _ in reader.attributes)
        places = [value for name, value in reader.attributes if name == "id"]
        links = [value for name, value in reader.attributes if name == "href"]
        assert len(places) == len(set(places)) and links == [f"#{place}" for place in places]
        assert "http://" not in page and "https://" not in page and "url(" not in page and "@import" not in page
        assert "prefers-color-scheme: dark" in page
        for expected in ("Before and after", "Why first attempts fail", "By action pair", "Measured with"):
            assert expected in reader.text
        assert all(pair.id in reader.text for pair in evidence.per_spec)
        assert evidence.digests["plan"] in reader.text


def test_figures_say_their_numbers_and_take_the_colours_of_the_page(evidence, told):
    reader = Reader(report.html(evidence, story=told))
    groups, attempts, loss = reader.figures
    assert "g00: base 1 of 3, candidate 2 of 3" in groups
    assert all(f"g{n:02}: base" in groups for n in range(37))
    assert "Share solved within 1 to 4 attempts. base: 1 %, 1 %, 1 %, 100 %; candidate: 95 %, 100 %" in attempts
    assert "0.125 at step 3; validation loss, base: 1.5; validation loss, trained: 0.0625." in loss
    assert {"mean of groups", "g36", "candidate 100 %", "optimiser step"} <= {word.strip() for word in reader.words}
    drawn = [value for name, value in reader.attributes if name == "style"]
    assert len(drawn) > 100
    assert any("var(--base)" in style for style in drawn) and not any("#" in style for style in drawn)


def test_equal_inputs_give_equal_bytes_whatever_the_users_matplotlib_is_set_to(evidence, told):
    import matplotlib

    page = report.html(evidence, story=told)
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "font.size": 30, "svg.fonttype": "path", "path.sketch": (3, 2, 1)}
    ):
        assert report.html(evidence, story=told) == page
        assert matplotlib.rcParams["font.size"] == 30
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 61])
def test_one_group_and_many_groups_are_drawn(tmp_path, count):
    base = {f"{n:02}$x_{n}^2$": ["style", "good"] for n in range(count)}
    reader = Reader(report.html(evidence_of(tmp_path, base, {name: ["good"] for name in base})))
    assert "00$" in reader.figures[0]
    drawn = [word for word in reader.words if word.strip() in {name[:3] for name in base}]
    assert len(drawn) >= min(count, 60)
    note = "the 30 that gained most and the 30 that gained least"
    assert (note in reader.text) == (count > 60)
    if count > 60:
        assert "⋮" in reader.text and "30$" not in reader.figures[0]


@pytest.mark.slow
def test_without_matplotlib_the_page_comes_with_its_tables_and_the_command(evidence, tmp_path):
    (tmp_path / "evidence.json").write_text(report.to_json(evidence), encoding="utf-8")
    script = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path; from guardlearn import report\n"
        "report.write(Path('out'), report.load(Path('evidence.json')))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reader = Reader((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert reader.figures == []
    assert reader.text.count("pip install 'guardlearn[report]'") == 1
    assert "1 of 3" in reader.text and "Every group (37)" in reader.text


@pytest.mark.slow
def test_the_story_of_a_job_is_told(evidence, job, story):
    told = story(dropped={"held-out side: kept for measuring": 7})
    reader = Reader(report.html(evidence, story=told, limits=["Families are kin."]))
    for expected in (
        "held-out side: kept for measuring",
        "repair row longer than 80 tokens",
        "Families are kin.",
        told.manifest["template_digest"],
        told.manifest["predicate"],
        "version.torch",
        "tokens_per_second",
        "Three chains that became training data",
    ):
        assert expected in reader.text
    assert told.result["host"]["name"] not in [word.strip() for word in reader.words]
    assert [step for step, _ in told.losses] == [1, 2]
    assert report.html(evidence, story=story(dropped={"held-out side: kept for measuring": 7})) == report.html(
        evidence, story=told
    )


def test_looks_at_the_validation_rows_are_told_and_without_a_model_only_the_tokens_are_missing(
    evidence, job, repository, tiny_model, tmp_path
):
    watched = shutil.copytree(job, tmp_path / "watched")
    lines = [json.loads(line) for line in (job / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[-1]["validation_loss"] = 1.25
    (watched / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with ArtifactDAG.load(repository, read_only=True) as dag:
        told, whole = report.story(dag, watched, None), report.story(dag, job, tiny_model)
    assert told.looks == ((2, 1.25),) and whole.looks == ()
    assert [trace.attempts for trace in told.traces] == [trace.attempts for trace in whole.traces]
    assert not any(trace.rows for trace in told.traces)
    assert "validation, step 2 1.25" in " ".join(Reader(report.html(evidence, story=told)).text.split())
    assert report.story(None, job, None).traces == ()


def test_chains_are_those_with_the_fewest_a_middle_and_the_most_retries_of_three_specifications(story):
    told = story()
    retries = [trace.attempts[-1].facts.rejected_ancestors for trace in told.traces]
    assert retries == [0, 2, 4]
    specifications = [trace.attempts[-1].specification for trace in told.traces]
    assert specifications == [TASKS[1], TASKS[2], TASKS[5]]
    assert [len(trace.attempts) for trace in told.traces] == [1, 3, 5]


def test_erratum_32_the_coloured_tokens_are_exactly_what_the_trainer_takes_loss_on(evidence, job, story, tiny_model):
    told = story()
    rows = {row["id"]: row for row in map(json.loads, (job / "train.jsonl").read_text(encoding="utf-8").splitlines())}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    shown = [row for trace in told.traces for row in trace.rows]
    marked = Reader(report.html(evidence, story=told)).rows
    assert [row.view for row in shown] == ["first_attempt", "first_attempt", "repair", "first_attempt"]
    for row, (plain, coloured, ends) in zip(shown, marked, strict=True):
        expected = rows[row.id]
        assert coloured == expected["completion"] + tokenizer.eos_token
        assert plain.endswith("assistant\n") and expected["prompt"][-1]["content"][:20] in plain
        assert ends == [tokenizer.eos_token]
        (tokens,) = tokenise([expected], tokenizer, None)
        assert plain + coloured == tokenizer.decode(tokens.prompt + tokens.completion)
        assert (row.prompt_tokens, row.loss_tokens) == (len(tokens.prompt), len(tokens.completion))
        assert row.weight == pytest.approx(expected["weight"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["naïve 🦜🏽 — δ\u200b", "\ta\r\nb\x0b\x85\u202e", "<|im_end|> & <b>\n", "\ufffd\n\ufffd"]
)
def test_invisible_and_split_characters_are_shown_and_stay_what_they_are(evidence, tiny_model, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = masked_rows([{"id": "r", "prompt": "ask", "completion": text, "view": "repair"}], tokenizer, 512)
    told = Story(manifest={}, result={}, traces=(TraceStory(attempts=(item("a"),), rows=tuple(rows)),))
    page = report.html(evidence, story=told)
    ((_, coloured, ends),) = Reader(page).rows
    assert coloured == text.replace("\x0b", "") + tokenizer.eos_token  # HTML holds no vertical tab: its mark stands
    assert ends == [tokenizer.eos_token]  # the name of a control token inside a text is no control token
    for letter in set(text) - set("\n\t "):
        assert letter.isprintable() or f'data-c="U+{ord(letter):04X}"' in page


def test_hostile_words_are_escaped_everywhere(tmp_path):
    words = {f"{HOSTILE}{n}": [HOSTILE, "good"] for n in range(2)}
    shown = evidence_of(tmp_path / "log", words, words, adapter=HOSTILE)
    attempts = tuple(
        item(HOSTILE, specification=HOSTILE, artifact=HOSTILE, feedback=HOSTILE, cause=HOSTILE, guard=HOSTILE)
        for _ in range(2)
    )
    token = MaskedToken(text=HOSTILE, tokens=1, loss=True, special=True, end=True)
    row = MaskedRow(id=HOSTILE, view=HOSTILE, weight=1.0, tokens=(token,))
    story = Story(
        manifest={HOSTILE: HOSTILE, "more": {HOSTILE: [HOSTILE]}, "left_out": [[HOSTILE, HOSTILE]]},
        result={HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}},
        settings={HOSTILE: HOSTILE},
        dropped={HOSTILE: 1},
        dropped_rows={HOSTILE: 1},
        traces=(TraceStory(attempts=attempts, rows=(row,)),),
    )
    page = report.html(shown, story=story, limits=[HOSTILE])
    assert "<script" not in page
    assert "<b>[" not in page
    assert page.count("&lt;script&gt;") > 24
    assert HOSTILE.removesuffix("\ud800") in Reader(page).text and page.count('data-c="U+D800"') > 24
    path = report.write(tmp_path / "out", shown, story=story)
    assert report.load(path.with_name("evidence.json")) == shown
    assert Reader(path.read_text(encoding="utf-8")).text.count("alert('x')") > 24


def test_long_texts_fold_and_say_what_they_leave_out(evidence):
    long = item("a", artifact="x = 1\n" * 5_000, feedback="short")
    piece = MaskedToken(text="y", tokens=2, loss=False, special=False, end=False)
    row = MaskedRow(id="r", view="repair", weight=0.5, tokens=(piece,) * 5_000)
    story = Story(manifest={}, result={}, traces=(TraceStory(attempts=(long,), rows=(row,)),))
    page = report.html(evidence, story=story)
    text = Reader(page).text
    assert "x = 1 (30,000 characters, 5,001 lines)" in text
    assert "18,000 more characters left out" in text
    assert "8,800 tokens left out" in text
    assert len(page) < 250_000


def test_a_redacted_chain_is_never_shown(job, tiny_model, repository):
    with ArtifactDAG.load(repository) as dag:
        shown = [trace.attempts[-1].id for trace in report.story(dag, job, tiny_model).traces]
        dag.redact(dag.get_item(shown[-1]).parent_id, "test", "private")
        after = [trace.attempts[-1].id for trace in report.story(dag, job, tiny_model).traces]
    assert shown[-1] not in after and len(after) == 3


def test_a_job_that_is_not_finished_or_was_written_for_another_model_is_one_clear_error(
    job, tiny_model, repository, tmp_path
):
    unfinished = shutil.copytree(job, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text())
    template = other / "chat_template.jinja"
    if template.is_file():
        template.write_text(template.read_text() + " ")
    else:
        (other / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": config["chat_template"] + " "})
        )
    with ArtifactDAG.load(repository, read_only=True) as dag:
        with pytest.raises(JobError, match="has not finished"):
            report.story(dag, unfinished, tiny_model)
        with pytest.raises(ModelError, match="into other tokens than the job's base model tiny"):
            report.story(dag, job, other)


def test_an_adapter_without_its_repository_still_has_its_manifest(evidence, job, tmp_path):
    adapter = publish(job, tmp_path / "adapter")
    told = report.story_of_adapter(adapter)
    text = Reader(report.html(evidence, story=told)).text
    for expected in (
        told.manifest["predicate"],
        told.manifest["item_ids_digest"],
        "version.torch",
        "What the extraction dropped is not known here.",
    ):
        assert expected in text
    assert "that became training data" not in text
    (adapter / "guardlearn.json").unlink()
    assert report.story_of_adapter(adapter) is None


def test_a_diverged_training_still_has_a_page(evidence):
    losses = ((1, 2.0), (2, float("nan")), (3, float("inf")))
    story = Story(manifest={}, result={"loss": {"first": 2.0, "last": float("inf")}}, losses=losses)
    assert "inf at step 3" in Reader(report.html(evidence, story=story)).figures[2]
    every = Story(manifest={}, result={}, losses=((1, float("nan")),))
    assert len(Reader(report.html(evidence, story=every)).figures) == 3


def test_an_evaluation_of_the_base_alone_has_a_page_too(tmp_path):
    shown = evidence_of(tmp_path, {f"g{n}": ["style", "good"] for n in range(5)}, None, adapter=None)
    assert "candidate" not in Reader(report.html(shown)).text
    assert "Attempts needed, at most 4: 2.00" in printed(shown)


def test_write_leaves_both_files_and_they_can_be_read_again(evidence, tmp_path):
    page = report.write(tmp_path / "out", evidence, limits=["x"])
    assert sorted(path.name for path in page.parent.iterdir()) == ["evidence.json", "report.html"]
    assert report.load(page.parent / "evidence.json") == evidence
    assert json.loads(report.to_json(evidence)) == json.loads(msgspec.json.encode(evidence))
    report.write(tmp_path / "out", evidence)
    assert "What this does not show" in page.read_text(encoding="utf-8")  # its own caveats stay


def test_reading_what_is_no_evidence_is_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="no evidence at"):
        report.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"model": 1}', encoding="utf-8")
    with pytest.raises(DataError, match="is no evidence of guardlearn"):
        report.load(tmp_path / "bad.json")


def test_a_surrogate_in_a_name_does_not_stop_the_page(evidence, tmp_path):
    path = report.write(tmp_path, evidence, limits=["odd \ud800 name"])
    assert 'odd <span class="ch" data-c="U+D800"></span> name' in path.read_text(encoding="utf-8")
