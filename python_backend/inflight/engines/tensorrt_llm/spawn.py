"""tensorrt_llm.LLM starts its workers by itself, through MPI's spawn, even a single one: what holds that up."""

from __future__ import annotations

from pathlib import Path

from inflight.engines.spec import WorkerSpec
from inflight.engines.tensorrt_llm.probe import DirectoryKind, directory_kind, read_config

# With these OpenMPI takes the places of Slurm's allocation for the only ones, and all of them for taken: the spawn
# fails in a thread of LLM's, whose constructor waits for ever (NVIDIA/TensorRT-LLM issue 5495).
OF_SLURM = ("SLURM_JOBID", "SLURM_JOB_ID", "SLURM_NODELIST")

ADVICE = (
    "TensorRT-LLM starts this checkpoint's workers through MPI, and waits for ever where MPI cannot spawn: look in the "
    "log above for MPI_ERR_SPAWN (OpenMPI 5 cannot at all, and a job step of Slurm's has no place for more processes); "
    "with one GPU TLLM_WORKER_USE_SINGLE_PROCESS=1 in the server's environment does without it"
)


def spawns(spec: WorkerSpec) -> bool:
    """Whether the engine of `spec` will spawn its workers. Raises `LoadError` when its directory cannot be read."""
    if spec.engine != "tensorrt_llm":
        return False
    return directory_kind(read_config(Path(spec.engine_dir))) is DirectoryKind.HUGGING_FACE


def without_slurm(environment: dict[str, str]) -> None:
    """Take out of `environment` what would hold the spawn up."""
    for name in OF_SLURM:
        environment.pop(name, None)
