"""The job folder, the boundary between light and heavy: written here, trained by a process of its own.

    job.toml          resolved settings                 adapter/       LoRA weights, there only when finished
    train.jsonl       rows of the train side            metrics.jsonl  one line a step
    validation.jsonl  rows of the validation side       result.json    versions, host, times, losses
    manifest.json     what it came from, digests        train.log      what the libraries said

The four on the left hold no time, host, version or absolute path: the same extraction gives the same bytes, and the
manifest and ℛ give them again.
"""

from guardlearn.jobs.config import TrainingConfig
from guardlearn.jobs.histories import recorded_histories, traces_again
from guardlearn.jobs.rebuilding import rebuild_job
from guardlearn.jobs.running import JobResult, run_job
from guardlearn.jobs.writing import JobSummary, provenance, write_job

__all__ = [
    "JobResult",
    "JobSummary",
    "TrainingConfig",
    "provenance",
    "rebuild_job",
    "recorded_histories",
    "run_job",
    "traces_again",
    "write_job",
]
