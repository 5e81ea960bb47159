"""An engine for several GPUs: one process per rank under mpirun (or srun), of which rank 0 is the engine process.

Used on both sides: the backend asks for the command (`ranks_command`), and the command runs this module in each rank.
Rank 0 connects back to the backend's socket, because OpenMPI closes inherited descriptors; the others construct the
executor and wait in its shutdown until the leader shuts down. One ordinary tritonserver serves them all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inflight.engine_process import processors
from inflight.engine_process.parent import die_with_parent
from inflight.engines.tensorrt_llm.options import TensorRtLlmOptions, read_options
from inflight.engines.tensorrt_llm.probe import DirectoryKind, directory_kind, engine_facts, read_config
from inflight.errors import LoadError

if TYPE_CHECKING:
    from inflight.engines.spec import WorkerSpec

log = logging.getLogger("inflight.engine_worker")

SPEC_VARIABLE = "INFLIGHT_WORKER_SPEC"  # ranks on other nodes do not see the run folder
PASSED_ON = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", SPEC_VARIABLE)
ENVIRONMENT = {
    "OMPI_MCA_mpi_yield_when_idle": "1",  # ranks that wait leave the cores to others
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # containers run as root
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
MPI_FOLDERS = ("/usr/local/mpi/bin", "/opt/hpcx/ompi/bin", "/opt/hpcx/ompi5/bin")  # of NVIDIA's images
INSTALL = {
    "mpirun": "put the folder of the OpenMPI that mpi4py and TensorRT-LLM were built with on PATH (in NVIDIA's images "
    f"{' or '.join(MPI_FOLDERS[:2])}); a second one from apt does not fit them",
    "srun": "install Slurm's client tools",
}


def ranks_command(
    spec: WorkerSpec, python: str, run_folder: Path, environment: Mapping[str, str]
) -> tuple[list[str], dict[str, str]] | None:
    """(command, further environment) that starts all ranks of the engine; None for an engine of one rank.

    Raises `LoadError` when the directory cannot be read or the launcher is missing.
    """
    folder = Path(spec.engine_dir)
    config = read_config(folder)
    if directory_kind(config) is not DirectoryKind.ENGINE:
        return None
    world = engine_facts(folder, config).world_size
    if world <= 1:
        return None
    options = read_options(spec.options)
    launcher = options.mpi_launcher
    if shutil.which(launcher, path=environment.get("PATH")) is None:
        raise LoadError(
            f"the engine was built for {world} GPUs and its ranks start under {launcher}, which is not on PATH: "
            f"{_advice(launcher)}."
        )
    more = {SPEC_VARIABLE: json.dumps(spec.to_json()), **ENVIRONMENT}
    rank = [python, "-m", __name__, str(run_folder)]
    command = _srun(options, world) if launcher == "srun" else mpirun(options, world, {**environment, **more})
    return [python, "-m", __name__, "--launch", *command, *options.mpi_arguments, *rank], more


def _advice(launcher: str, folders: Sequence[str] = MPI_FOLDERS) -> str:
    """What to do about a launcher that is not on PATH."""
    found = shutil.which(launcher, path=os.pathsep.join(folders))
    return f"put {os.path.dirname(found)} on PATH, where it is" if found else INSTALL[launcher]


def mpirun(options: TensorRtLlmOptions, world: int, environment: Mapping[str, str]) -> list[str]:
    """Start of a command for `world` ranks; what they need of `environment` is passed on."""
    command = ["mpirun", "-n", str(world), "--bind-to", "none"]
    command += ["--hostfile", options.mpi_hostfile] if options.mpi_hostfile else ["--oversubscribe"]
    for name in environment:
        if name in PASSED_ON or name.startswith(("TLLM_", "TRTLLM_", "TRT_LLM_", "NCCL_", "OMPI_MCA_", "INFLIGHT_")):
            command += ["-x", name]
    return command


def _srun(options: TensorRtLlmOptions, world: int) -> list[str]:
    """Inside an allocation; rank 0 has to come to this node, so this node has to be the first of it."""
    per_node = -(-world // options.num_nodes)
    return ["srun", "--mpi=pmix", "-n", str(world), f"--ntasks-per-node={per_node}", "--export=ALL"]


def rank_of(environment: Mapping[str, str]) -> int:
    """The rank of this process; 0 where no launcher said one."""
    for name in RANK_VARIABLES:
        if name in environment:
            return int(environment[name])
    return 0


def launch(command: list[str]) -> None:
    """Become the launcher, and die with the backend: the kernel's death signal survives exec."""
    die_with_parent()
    processors.take_all()
    os.execvp(command[0], command)


def follow(spec: Mapping[str, Any]) -> int:
    """Of every rank but 0: build the same executor and wait for its end. 0 after an orderly one."""
    from inflight.engines.tensorrt_llm.config import executor_config, guided_config
    from inflight.engines.tensorrt_llm.create import make_executor
    from inflight.engines.tensorrt_llm.probe import import_installed

    options = read_options(spec["options"])
    folder = Path(spec["engine_dir"])
    facts = engine_facts(folder, read_config(folder))
    trtllm = import_installed().executor
    guided = guided_config(trtllm, options, str(folder), speculative=facts.speculative_mode != "none")
    executor = make_executor(trtllm, folder, executor_config(trtllm, options, facts, guided))
    if executor.can_enqueue_requests():
        raise LoadError("two ranks take themselves for the leader: the launcher did not start them as one MPI job.")
    executor.shutdown()
    return 0


def main(arguments: list[str]) -> int:
    """`--launch COMMAND…`, or the run folder of a rank."""
    if arguments[0] == "--launch":
        launch(arguments[1:])
    from inflight.engine_process import worker

    if rank_of(os.environ) == 0:
        return worker.main(Path(arguments[0]))
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return follow(json.loads(os.environ[SPEC_VARIABLE]))
    except LoadError as error:
        log.error("rank %d: %s", rank_of(os.environ), error)
        return 1


def leave(status: int) -> None:
    """End this rank. One that failed ends its job: an orderly end would wait in MPI_Finalize for the other ranks, and
    these wait for it to load, or to be shut down by it.
    """
    if status:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """`main`, with 1 for what nobody foresaw."""
    try:
        return main(arguments)
    except Exception:
        log.exception("rank %d broke", rank_of(os.environ))
        return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s[%(process)d] %(levelname)s %(message)s")
    leave(run(sys.argv[1:]))
