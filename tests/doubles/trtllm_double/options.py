"""How the stand-in behaves: speed, sizes and faults, read once from the environment."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

TABLES = Path(__file__).resolve().parents[3] / "scripts" / "inflight_tools" / "selfcheck"


@dataclasses.dataclass(frozen=True)
class DoubleOptions:
    """Times in milliseconds. A count of N means the N-th of its kind in the executor's life; 0 is never.

    `errors` says how a request that breaks a limit is refused: by a "response" with an error, as the library's loop
    does (executorImpl.cpp at b35ac1b6, fetchNewRequests), or "raise" out of enqueue_request. `eos_every` ends sequences
    after that many tokens. `lora_slots` is how many adapters stay in the cache. `gpu_gib` is
    the memory of the one GPU, of which an engine's `weights_gib` are taken before its KV cache; 0 is without end.
    Faults: `enqueue_raises_at` and `error_at` count requests; `stall_at`, `die_at` and `break_at` count tokens (the
    loop stops, the process is killed, iterations throw `break_words`, `break_times` of them or all); `die_rank` with
    `die_after_ms` kills one rank; `oom_at_load`, `mpi_fails` and `import_fails` refuse to start.

    For tensorrt_llm.LLM: `eos_token` is the token that ends this model's texts (else the first of its
    generation_config.json); `error_words` is what error_at says, and with `error_stays` every request fails from then
    on; at `die_at` its worker dies, at `break_at` its executor says an error of its own, at `stall_at` nothing more
    comes; `plain_torch_sampler` is a TorchSampler that leaves penalties, min_p and seeds out; with
    `spawn_hangs` LLM is never ready.
    """

    step_ms: float = 1.0
    load_ms: float = 0.0
    blocks: int = 512
    tokens_per_block: int = 32
    errors: str = "response"
    eos_every: int = 0
    lora_slots: int = 2
    gpu_gib: float = 0.0
    weights_gib: float = 0.0
    enqueue_raises_at: int = 0
    error_at: int = 0
    stall_at: int = 0
    die_at: int = 0
    break_at: int = 0
    break_times: int = 0
    break_words: str = "CUDA runtime error in cudaStreamSynchronize: an illegal memory access was encountered"
    die_rank: int = -1
    die_after_ms: float = 0.0
    oom_at_load: bool = False
    mpi_fails: bool = False
    import_fails: bool = False
    eos_token: int = -1
    error_words: str = "the stand-in was told to answer with an error"
    error_stays: bool = False
    plain_torch_sampler: bool = False
    spawn_hangs: bool = False


@functools.cache
def options(engine: Path | None = None) -> DoubleOptions:
    """The options of this process, with those of double.json in the directory of an engine over them. Raises
    `TypeError` for a name that does not exist.
    """
    values = json.loads(os.environ.get("TRTLLM_DOUBLE", "{}"))
    if engine is not None and (engine / "double.json").is_file():
        values |= json.loads((engine / "double.json").read_text())
    return DoubleOptions(**values)


@functools.cache
def profile() -> dict[str, Any]:
    """The release this process pretends to have."""
    name = os.environ.get("TRTLLM_DOUBLE_PROFILE", "1.2")
    profiles: dict[str, dict[str, Any]] = json.loads((TABLES / "profiles.json").read_text())
    return {"name": name, "drop": [], "rename": {}, "only": None, **profiles[name]}
