"""guardlearn turns the retries of guard-checked LLM generation into a model that passes first time, and proves it.

The public API, loaded on first use (PEP 562), so that `import guardlearn` costs nothing heavy. The guide's function
names live here too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ArtifactStatus": "types",
    "FeedbackEntry": "types",
    "GuardContext": "types",
    "RepositoryItem": "types",
    "Side": "types",
    "Source": "types",
    "Specification": "types",
    "TrainingTrace": "types",
    "Verdict": "types",
    "GuardlearnError": "errors",
    "PromptConfig": "prompts",
    "Renderer": "prompts",
    "format_alpaca": "prompts",
    "format_full_example": "prompts",
    "format_prompt": "prompts",
    "ArtifactDAG": "dag",
    "Φ_action_pair": "predicates",
    "Φ_all_successes": "predicates",
    "Φ_generator_only": "predicates",
    "Φ_high_value": "predicates",
    "Φ_human_only": "predicates",
    "Φ_recent": "predicates",
    "Φ_refinement": "predicates",
    "Φ_source": "predicates",
    "Φ_status": "predicates",
    "Φ_timestamp_after": "predicates",
    "and_": "predicates",
    "or_": "predicates",
    "parse": "predicates",
    "policy": "predicates",
    "refinement": "predicates",
    "export_items": "dag.exporting",
    "ImportFault": "dag.importers.protocol",
    "ImportedItem": "dag.importers.protocol",
    "Importer": "dag.importers.protocol",
    "import_chat": "dag.importers.chat",
    "import_items": "dag.importers.intake",
    "import_log": "dag.importers.log",
    "import_repository": "dag.importers.repository",
    "import_with": "dag.importers.intake",
    "load_prompts": "dag.importers.atomicguard_prompts",
    "read_workflows": "dag.importers.workflows",
    "workflow_hash": "dag.importers.workflows",
    "CommandGuard": "guards",
    "JsonSchemaGuard": "guards",
    "PytestGuard": "guards",
    "PythonGuard": "guards",
    "RegexGuard": "guards",
    "SqlGuard": "guards",
    "all_of": "guards",
    "any_of": "guards",
    "load_guard": "guards",
    "majority": "guards",
    "SamplingConfig": "generators",
    "open_generator": "generators",
    "explain_selection": "traces",
    "extract_new_traces": "traces",
    "extract_traces": "traces",
    "extract_training_data": "traces",
    "get_provenance_chain": "traces",
    "sparse_reward": "traces",
    "guard_reward": "rewards",
    "format_traces": "formats",
    "write_rows": "formats",
    "TrainingConfig": "jobs",
    "run_job": "jobs",
    "write_job": "jobs",
    "add_lora_adapters": "training",
    "load_model_for_training": "training",
    "save_trained_model": "training",
    "train_on_traces": "training",
    "evaluate": "evaluation",
    "evaluate_improvement": "improvement",
    "generate": "improvement",
    "incremental_training_loop": "loop",
    "load_training_checkpoint": "loop",
    "save_training_checkpoint": "loop",
    "ExportReport": "exporting",
    "export_adapter": "exporting",
    "MergeReport": "merging",
    "merge_adapter": "merging",
    "run_training_pipeline": "pipeline",
    "train_from_repository": "pipeline",
}

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG as ArtifactDAG
    from guardlearn.dag.exporting import export_items as export_items
    from guardlearn.dag.importers.atomicguard_prompts import load_prompts as load_prompts
    from guardlearn.dag.importers.chat import import_chat as import_chat
    from guardlearn.dag.importers.intake import import_items as import_items
    from guardlearn.dag.importers.intake import import_with as import_with
    from guardlearn.dag.importers.log import import_log as import_log
    from guardlearn.dag.importers.protocol import ImportedItem as ImportedItem
    from guardlearn.dag.importers.protocol import Importer as Importer
    from guardlearn.dag.importers.protocol import ImportFault as ImportFault
    from guardlearn.dag.importers.repository import import_repository as import_repository
    from guardlearn.dag.importers.workflows import read_workflows as read_workflows
    from guardlearn.dag.importers.workflows import workflow_hash as workflow_hash
    from guardlearn.errors import GuardlearnError as GuardlearnError
    from guardlearn.evaluation import evaluate as evaluate
    from guardlearn.exporting import ExportReport as ExportReport
    from guardlearn.exporting import export_adapter as export_adapter
    from guardlearn.formats import format_traces as format_traces
    from guardlearn.formats import write_rows as write_rows
    from guardlearn.generators import SamplingConfig as SamplingConfig
    from guardlearn.generators import open_generator as open_generator
    from guardlearn.guards import CommandGuard as CommandGuard
    from guardlearn.guards import JsonSchemaGuard as JsonSchemaGuard
    from guardlearn.guards import PytestGuard as PytestGuard
    from guardlearn.guards import PythonGuard as PythonGuard
    from guardlearn.guards import RegexGuard as RegexGuard
    from guardlearn.guards import SqlGuard as SqlGuard
    from guardlearn.guards import all_of as all_of
    from guardlearn.guards import any_of as any_of
    from guardlearn.guards import load_guard as load_guard
    from guardlearn.guards import majority as majority
    from guardlearn.improvement import evaluate_improvement as evaluate_improvement
    from guardlearn.improvement import generate as generate
    from guardlearn.jobs import TrainingConfig as TrainingConfig
    from guardlearn.jobs import run_job as run_job
    from guardlearn.jobs import write_job as write_job
    from guardlearn.loop import incremental_training_loop as incremental_training_loop
    from guardlearn.loop import load_training_checkpoint as load_training_checkpoint
    from guardlearn.loop import save_training_checkpoint as save_training_checkpoint
    from guardlearn.merging import MergeReport as MergeReport
    from guardlearn.merging import merge_adapter as merge_adapter
    from guardlearn.pipeline import run_training_pipeline as run_training_pipeline
    from guardlearn.pipeline import train_from_repository as train_from_repository
    from guardlearn.predicates import Φ_action_pair as Φ_action_pair
    from guardlearn.predicates import Φ_all_successes as Φ_all_successes
    from guardlearn.predicates import Φ_generator_only as Φ_generator_only
    from guardlearn.predicates import Φ_high_value as Φ_high_value
    from guardlearn.predicates import Φ_human_only as Φ_human_only
    from guardlearn.predicates import Φ_recent as Φ_recent
    from guardlearn.predicates import Φ_refinement as Φ_refinement
    from guardlearn.predicates import Φ_source as Φ_source
    from guardlearn.predicates import Φ_status as Φ_status
    from guardlearn.predicates import Φ_timestamp_after as Φ_timestamp_after
    from guardlearn.predicates import and_ as and_
    from guardlearn.predicates import or_ as or_
    from guardlearn.predicates import parse as parse
    from guardlearn.predicates import policy as policy
    from guardlearn.predicates import refinement as refinement
    from guardlearn.prompts import PromptConfig as PromptConfig
    from guardlearn.prompts import Renderer as Renderer
    from guardlearn.prompts import format_alpaca as format_alpaca
    from guardlearn.prompts import format_full_example as format_full_example
    from guardlearn.prompts import format_prompt as format_prompt
    from guardlearn.rewards import guard_reward as guard_reward
    from guardlearn.traces import explain_selection as explain_selection
    from guardlearn.traces import extract_new_traces as extract_new_traces
    from guardlearn.traces import extract_traces as extract_traces
    from guardlearn.traces import extract_training_data as extract_training_data
    from guardlearn.traces import get_provenance_chain as get_provenance_chain
    from guardlearn.traces import sparse_reward as sparse_reward
    from guardlearn.training import add_lora_adapters as add_lora_adapters
    from guardlearn.training import load_model_for_training as load_model_for_training
    from guardlearn.training import save_trained_model as save_trained_model
    from guardlearn.training import train_on_traces as train_on_traces
    from guardlearn.types import ArtifactStatus as ArtifactStatus
    from guardlearn.types import FeedbackEntry as FeedbackEntry
    from guardlearn.types import GuardContext as GuardContext
    from guardlearn.types import RepositoryItem as RepositoryItem
    from guardlearn.types import Side as Side
    from guardlearn.types import Source as Source
    from guardlearn.types import Specification as Specification
    from guardlearn.types import TrainingTrace as TrainingTrace
    from guardlearn.types import Verdict as Verdict

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'guardlearn' has no attribute {name!r}")
    return getattr(importlib.import_module(f"guardlearn.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
