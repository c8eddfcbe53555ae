"""`explain`: the query behind an extraction and the database's plan for it, on both databases."""

import json
import subprocess
import sys

import pytest
import sqlalchemy as sa

from databases import Place
from guardlearn import ArtifactDAG, RepositoryItem, parse, refinement
from guardlearn.errors import UsageError
from guardlearn.predicates import everything, satisfies
from guardlearn.types import ArtifactStatus

pytestmark = pytest.mark.usefixtures("commands_start_warm")

ODD = '50%_done\'; \\ :name "x" ü'


@pytest.fixture
def filled(place: Place) -> Place:
    with ArtifactDAG.create(place.target) as dag:
        batch: list[RepositoryItem] = []
        for number in range(0, 1_000, 2):
            first, second = f"a{number:04}", f"a{number + 1:04}"
            pair = ODD if number % 10 == 0 else "other"
            common = {"specification": f"spec {number % 30}", "action_pair_id": pair}
            batch += [
                RepositoryItem(id=first, artifact="x", status=ArtifactStatus.REJECTED, **common),
                RepositoryItem(id=second, artifact="y", status=ArtifactStatus.ACCEPTED, parent_id=first, **common),
            ]
        dag.append_many(batch)
    with place.behind() as connection:
        if not place.is_file:
            connection.execute(sa.text("ANALYZE"))
    return place


@pytest.mark.slow
@pytest.mark.parametrize("order_by", ["created_at", "seq"])
@pytest.mark.parametrize("text", ["refinement()", "everything()", "refinement() & ~recent(days=1)", None])
def test_the_query_shown_selects_what_extract_yields(filled: Place, text: str | None, order_by: str) -> None:
    predicate = f"action_pair({json.dumps(ODD, ensure_ascii=False)})" if text is None else text
    with ArtifactDAG.load(filled.target, read_only=True) as dag:
        chosen = parse(predicate)
        plan = dag.explain(chosen, order_by=order_by)
        expected = [int(item.id[1:]) + 1 for item in dag.extract(chosen, order_by=order_by)]
        with dag.reading() as connection:
            found = connection.exec_driver_sql(plan.sql, execution_options={"no_parameters": True}).scalars().all()
    assert list(found) == expected
    assert len(expected) == {"everything()": 1_000, None: 200}.get(text, len(expected))
    assert plan.steps and not plan.in_python
    assert plan.database == ("sqlite" if filled.is_file else "postgresql")


def test_the_selection_runs_by_an_index(filled: Place) -> None:
    with ArtifactDAG.load(filled.target, read_only=True) as dag:
        plan = dag.explain(parse("refinement() & retries(at_least=2)"))
    assert plan.indexes == ["facts_selection"]
    assert any("facts_selection" in step for step in plan.steps)


def test_a_function_is_said_to_run_in_python(filled: Place) -> None:
    with ArtifactDAG.load(filled.target, read_only=True) as dag:
        assert dag.explain(refinement() & satisfies(lambda item: True)).in_python
        assert dag.explain(lambda item: True).in_python
        assert not dag.explain(everything()).in_python
        with pytest.raises(UsageError, match="order_by='age'"):
            dag.explain(everything(), order_by="age")


def test_the_command_shows_it_without_writing_rows(filled: Place) -> None:
    def guardlearn(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "guardlearn", "extract", filled.target, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shown = guardlearn("--explain", "--where", "refinement()")
    assert shown.returncode == 0, shown.stderr
    assert "rejected_ancestors >= 1" in shown.stdout and "items.seq <= 1000" in shown.stdout
    assert "facts_selection" in shown.stderr and "the whole predicate is in the query" in shown.stderr
    told = json.loads(guardlearn("--explain", "--json").stdout)
    assert told["predicate"] == "refinement()" and told["steps"] and told["in_python"] is False
    nowhere = guardlearn()
    assert nowhere.returncode == 2 and "-o FILE" in nowhere.stderr
