"""Every block that README and docs show, in the order of the pages, and what holds it: a test, a proof, or a reason.

`test_docs_blocks.py` compares this with the pages: a new block, a changed first line, a test that is gone fail there.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """A fenced or indented block."""

    page: str
    """README.md, or the file's name below docs/."""
    line: int
    kind: str
    """What stands behind the fence; "" for none and for indented blocks."""
    text: str

    @property
    def opening(self) -> str:
        return self.text.splitlines()[0]

    @property
    def commands(self) -> list[str]:
        """The guardlearn commands in it, without what a comment says about them."""
        lines = [line.removeprefix("$ ").split("  #")[0].strip() for line in self.text.splitlines()]
        return [line for line in lines if line.startswith("guardlearn ")] if self.kind in ("", "sh") else []


class Excused(NamedTuple):
    """A block that no test runs, and why; it may hold no command of guardlearn."""

    reason: str


def name(page: Path) -> str:
    return page.relative_to(ROOT / "docs" if page.parent != ROOT else ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    tokens = MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8"))
    return [
        Block(name(page), token.map[0] + 1, token.info.strip(), token.content)
        for token in tokens
        if token.type in ("fence", "code_block") and token.map is not None
    ]


def block(page: str, opening: str) -> Block:
    """Return the first block of a page that begins so."""
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    return next(each for each in blocks(path) if each.opening.startswith(opening))


HERE = "test_docs_blocks.py::"
LAUNCHED = "test_training_distributed.py::test_accelerate_launch_trains_the_same_adapter_and_one_process_writes"
STORES = "test_atomicguard.py::test_the_command_takes_a_folder_for_a_store_and_a_file_for_a_log"
WORKFLOWS = "test_workflows.py::test_the_command_checks_logs_and_refuses_what_it_cannot_check"
RECIPES = "test_guards_recipes.py::test_every_table_loads"
SERVED = "test_export_served.py::test_the_commands_that_docs_show_as_run_here_serve_what_they_say"
ANSWERS = "test_openai_serve.py::test_a_collection_holds_what_the_model_itself_answers_to_the_same_prompts"
FIRST = "test_first_adapter.py::test_the_page_leads_to_a_decision"
TUTORIAL = "test_tutorial.py::test_the_tutorial_runs_as_written"
INSTALLS = Excused("installs packages over the network; the names are checked against pyproject.toml")
ON_A_GPU = Excused("needs a GPU; benchmarks/gpu.py ran it there, and docs/gpu.json says what came of it")
ELSEWHERE = Excused("another project's program, which is not here; the page says that it was not run")

RAY = (
    "test_engines_ray.py::test_the_command_collects_on_a_cluster",
    "test_engines_ray.py::test_it_measures_what_the_local_engine_measures",
    "test_engines_ray.py::test_an_audit_finds_there_what_it_finds_here",
)
ROUNDS_TOLD = (
    "test_report_cli.py::test_the_last_round_is_told_with_all_that_was_measured_and_decided",
    "test_report_cli.py::test_an_earlier_round_is_told_by_its_number_and_by_its_folder",
)
ABLATED = (
    "test_ablate_cli.py::test_specifications_can_be_named_after_the_repository",
    "test_ablate_cli.py::test_a_dry_run_trains_and_leaves_nothing",
    "test_ablation.py::test_a_predicate_can_be_an_arm",
)
LOGGED = (
    HERE + "test_a_log_becomes_a_measured_adapter",
    "test_pipeline.py::test_run_trains_and_measures_in_one_command",
)
LOOP = (
    "test_loop.py::test_two_loops_do_not_collide",
    "test_loop.py::test_watching_ends_when_rounds_no_longer_help",
    "test_loop.py::test_dry_run_says_what_a_round_could_show",
)
ADAPTERS = tuple(
    f"test_cli_adapters.py::test_{test}"
    for test in (
        "the_list_says_what_was_decided_and_what_is_live", "show_gives_the_whole_record",
        "why_tells_one_adapter_on_one_page",
        "impact_lists_who_learned_from_it", "promote_and_rollback_by_hand", "rebuild_writes_the_job_again",
    )
)  # fmt: skip
SERVERS = ("test_openai_serve.py::test_two_models_of_a_server_are_compared", ANSWERS)

HELD: dict[str, list[tuple[str, str | tuple[str, ...] | Excused]]] = {
    "README.md": [
        ("make demo", "prove/clean_demo.py"),
        ("from guardlearn import ArtifactDAG, generate", "test_docs.py::test_the_ten_line_program_runs"),
        ("221 attempts read", "test_docs.py::test_what_is_shown_is_the_evidence"),
        ("src/guardlearn/", "test_docs.py::test_every_file_of_the_tree_is_there"),
        ("guardlearn import log.jsonl", LOGGED),
        ("with dag.chain(", "test_docs.py::test_an_agent_records_in_five_lines"),
        ("guardlearn collect specs.jsonl", HERE + "test_commands_over_a_small_repository"),
        ("guardlearn extract runs.db --where", HERE + "test_commands_over_a_small_repository"),
    ],
    "ablations.md": [
        ("guardlearn ablate runs.db", ABLATED),
        ("[ablation]", "test_ablation_arms.py::test_the_page_shows_the_defaults_and_every_axis"),
    ],
    "atomicguard.md": [
        ("guardlearn import runs/", STORES),
        ("$ guardlearn import fs_hostile", HERE + "test_what_an_import_of_a_hostile_store_says"),
        ("from guardlearn.dag import ArtifactDAG", HERE + "test_the_program_that_imports_a_store"),
    ],
    "auditing.md": [
        ("guardlearn audit runs.db", HERE + "test_commands_over_a_small_repository"),
        ("from guardlearn import ArtifactDAG, load_guard", "test_audit.py::test_the_pages_program_and_table_are_true"),
        ("guardlearn audit runs.db", HERE + "test_commands_over_a_small_repository"),
        ("[audit]", "test_audit.py::test_the_pages_program_and_table_are_true"),
        ("guardlearn amend runs.db", HERE + "test_commands_over_a_small_repository"),
    ],
    "benchmarks.md": [
        ("make bench", "test_benchmarks.py"),
        ("python3.12 -m venv ag", INSTALLS),
        ("python benchmarks/training.py", "test_benchmarks.py"),
    ],
    "browser.md": [
        ("guardlearn ui runs.db", "test_ui_command.py::test_it_serves_until_it_is_told_to_end"),
        ("guardlearn extract runs.db", HERE + "test_commands_over_a_small_repository"),
    ],
    "collecting.md": [
        ("guardlearn collect specs.jsonl", HERE + "test_commands_over_a_small_repository"),
        ("[collect]", HERE + "test_tables_are_read"),
        ("pip install 'guardlearn[ray]'", "test_engines_ray.py::test_the_command_collects_on_a_cluster"),
        ("from guardlearn.collect import collect", HERE + "test_collecting_from_python"),
    ],
    "concepts.md": [("from guardlearn import parse", HERE + "test_predicates_as_the_concepts_show_them")],
    "first-adapter.md": [
        ("guardlearn init steps", FIRST),
        ("guardlearn collect specs.jsonl", FIRST),
        ("cat >> guardlearn.toml", FIRST),
        ("guardlearn loop runs.db", FIRST),
        ("guardlearn why 1", FIRST),
    ],
    "gpu-box.md": [
        ("# write_job.py", HERE + "test_a_job_travels_to_another_machine_and_back"),
        ("rsync -a out/job BOX:", HERE + "test_a_job_travels_to_another_machine_and_back"),
        ("guardlearn train runs.db", HERE + "test_a_job_travels_to_another_machine_and_back"),
        ("from pathlib import Path", HERE + "test_a_job_travels_to_another_machine_and_back"),
    ],
    "gpu.md": [
        ("pip install torch==2.11.0", "test_unsloth_sources.py::test_the_pins_are_within_unsloths_bounds"),
        ("python -m guardlearn.training JOB", ON_A_GPU),
    ],
    "guards.md": [
        ("guardlearn collect specs.jsonl", "test_guards_cli.py::test_a_guard_of_the_settings_file_collects"),
        ("# guards.py", "test_guards_recipes.py::test_a_recipe_tells_right_from_wrong"),
        ("[guards.tests]", RECIPES),
        ('{"id": "double"', "test_guards_recipes.py::test_a_specification_brings_its_tests"),
        ("[guards.ruff]", RECIPES),
        ("[guards.mypy]", RECIPES),
        ("[guards.node]", RECIPES),
        ("[guards.cargo]", RECIPES),
        ("[guards.pytest_plain]", RECIPES),
        ("[guards.parses]", RECIPES),
        ("[guards.all]", RECIPES),
        ("[sandbox]", RECIPES),
    ],
    "importers.md": [
        ("guardlearn import SOURCE", "test_cli.py::test_import_twice_takes_only_what_is_new"),
        ('{"messages": [', "test_chat_import.py::test_the_pages_conversation_is_what_it_says"),
        ("guardlearn import chat.jsonl", "test_chat_import.py::test_the_pages_mappings_are_read"),
        ("guardlearn import log.jsonl", "test_chat_import.py::test_the_pages_mappings_are_read"),
        ('"""queries.py', "test_own_importer.py::test_the_documented_importer_runs_as_written"),
        ("guardlearn import queries.csv", "test_own_importer.py::test_the_documented_importer_runs_as_written"),
        ("guardlearn import log.jsonl", WORKFLOWS),
        ("guardlearn extract runs.db", "test_atomicguard_prompts.py::test_the_commands_take_atomicguards_prompts"),
        ("guardlearn export runs.db", HERE + "test_commands_over_a_small_repository"),
    ],
    "logs.md": [
        ('{"session": "at_least_floor-1"', HERE + "test_the_line_of_the_log_is_one_of_the_log"),
        ("guardlearn import log.jsonl", HERE + "test_a_log_becomes_a_measured_adapter"),
        ("guardlearn stats runs.db", HERE + "test_a_log_becomes_a_measured_adapter"),
        ("guardlearn train runs.db", HERE + "test_a_log_becomes_a_measured_adapter"),
        ("# style.py", HERE + "test_the_guard_of_the_log_tells_its_answers_apart"),
        ("# held_out.py", HERE + "test_a_log_becomes_a_measured_adapter"),
        ("python held_out.py", HERE + "test_a_log_becomes_a_measured_adapter"),
    ],
    "postgresql.md": [
        ("pip install 'guardlearn[postgres]'", "test_dag_postgres.py::test_commands_take_a_url"),
        ("psql runs -c", "test_dag_postgres.py::test_each_schema_holds_a_repository_of_its_own"),
    ],
    "ray.md": [
        ("pip install 'guardlearn[ray]'", INSTALLS),
        ("guardlearn collect specs.jsonl", RAY),
    ],
    "real.md": [("make prove", "prove/run.py")],
    "reports.md": [
        ("guardlearn report measured", HERE + "test_an_evaluation_is_reported"),
        ("guardlearn report runs.db", ROUNDS_TOLD),
    ],
    "repository.md": [("guardlearn verify runs.db", HERE + "test_commands_over_a_small_repository")],
    "rounds.md": [
        ("guardlearn loop runs.db", LOOP),
        ("[loop]", HERE + "test_tables_are_read"),
        ("guardlearn adapters runs.db list", ADAPTERS),
    ],
    "servers.md": [
        ("pip install 'guardlearn[openai]'", SERVERS),
        ("[openai]", "test_openai.py::test_the_page_shows_the_settings_with_their_defaults"),
    ],
    "serving.md": [
        ("guardlearn export adapter --to peft", SERVED),
        ("guardlearn export promoted", "test_export_cli.py::test_an_adapter_is_named_as_the_registry_names_it"),
        ("vllm serve BASE", ELSEWHERE),
        ("transformers serve --port 8000", "test_export_served.py::test_a_peft_folder_without_its_base_is_not_served"),
        ("cd tuned-ollama", ELSEWHERE),
        ("llama-server -m base.gguf", ELSEWHERE),
        ("python convert_lora_to_gguf.py", ELSEWHERE),
        ("python convert_hf_to_gguf.py", ELSEWHERE),
    ],
    "training.md": [
        ("python -m guardlearn.training JOB", HERE + "test_a_job_travels_to_another_machine_and_back"),
        ("from guardlearn import guard_reward", HERE + "test_a_guard_as_a_reward"),
        ("accelerate launch", LAUNCHED),
    ],
    "tutorial.md": [
        ("pip install", "test_tutorial.py::test_what_it_installs_is_what_there_is"),
        ("guardlearn doctor", TUTORIAL),
        ("guardlearn init first", TUTORIAL),
        ("guardlearn collect specs.jsonl", TUTORIAL),
        ("guardlearn collect specs.jsonl", ANSWERS),
        ("cat > roman.py", TUTORIAL),
        ("guardlearn audit runs.db", TUTORIAL),
        ("guardlearn extract runs.db", TUTORIAL),
        ("guardlearn init ../mine", TUTORIAL),
    ],
}  # fmt: skip
"""Page → (how a block begins, what holds it), in the order of the page."""
