"""Which peers there are on this machine, made from the benchmark's options, and who of them is compared with whom."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peer_inflight import InflightPeer, built_engine
from bench.peer_llamacpp import LlamaCppPeer
from bench.peer_servers import Peer
from bench.peer_transformers import TransformersPeer
from bench.peer_vllm import KV_GIB, VllmPeer, name_of
from inflight_tools.common.layout import CACHE
from inflight_tools.common.report import Failure

INT8, INT8_SQ, BITS16, TUNED = "inflight int8", "inflight int8-sq", "inflight 16-bit", "inflight int8 tuned"
ON_VLLM = "inflight on vllm"
_OURS = "inflight "
_LEAST_SEQUENCES = 16


def most_sequences(options: argparse.Namespace) -> int:
    """What every peer is started for: `--most`, else the most that are in flight in this plan."""
    return int(options.most or max([*options.concurrency, _LEAST_SEQUENCES]))


def vllm_behind_inflight(python: Path, checkpoint: Path, most: int) -> Peer:
    """Our backend with vLLM as its engine, with the settings that its own server gets. Raises `Failure` without it."""
    if not python.exists():
        raise Failure("vLLM is not installed: scripts/install_vllm.sh")
    options = {"dtype": "bfloat16", "max_seq_len": 8192, "kv_cache_gb": KV_GIB}
    parameters = {"engine": "vllm", "engine_python": str(python), "engine_options": options, "max_running": str(most)}
    return InflightPeer(ON_VLLM, "bf16", checkpoint, parameters)


def installed(options: argparse.Namespace, request_tokens: int, say: Callable[[str], None]) -> list[Peer]:
    """The peers of this machine, less those that were left out; each has room for `request_tokens` a request."""
    most = most_sequences(options)
    checkpoint, gguf = options.checkpoint.absolute(), options.gguf or [CACHE / "llama.cpp" / "model-q8_0.gguf"]
    python, preload = options.vllm_python.absolute(), options.vllm_preload or ()
    makers: dict[str, Callable[[], Peer]] = {}
    if options.engine:
        for name, folder in options.engine:
            makers[_OURS + name] = lambda name=name, folder=folder: of_ours(name, folder)  # type: ignore[misc]
    else:
        for name, recipe in ((INT8, "int8"), (INT8_SQ, "int8-sq"), (BITS16, "none")):
            weights = name.removeprefix(_OURS)
            makers[name] = lambda name=name, recipe=recipe, weights=weights: InflightPeer(  # type: ignore[misc]
                name, weights, built_engine(checkpoint, recipe)
            )
    if options.tuned:
        engine = dict(options.engine or ()).get("int8")
        tuned = {"engine_options": options.tuned}
        makers[TUNED] = lambda: InflightPeer(TUNED, "int8", engine or built_engine(checkpoint, "int8"), tuned)
    dtype = options.vllm_dtype
    makers[name_of(dtype)] = lambda: VllmPeer(python, checkpoint, most, preload, dtype=dtype)
    for name, folder in options.vllm or ():
        makers[f"vllm {name}"] = lambda name=name, folder=folder: VllmPeer(  # type: ignore[misc]
            python, folder.absolute(), most, preload, name, dtype
        )
    makers[ON_VLLM] = lambda: vllm_behind_inflight(python, checkpoint, most)
    makers["transformers"] = lambda: TransformersPeer(checkpoint)
    for file in gguf:
        makers[f"llama.cpp {file.stem}"] = lambda file=file: LlamaCppPeer(  # type: ignore[misc]
            options.llama_server, file, most, request_tokens
        )
    if unknown := set(options.only or ()) - set(makers):
        raise Failure(f"--only: there is no peer {min(unknown)!r}; there are {', '.join(makers)}.")
    found = []
    for name, make in makers.items():
        if any(part in name for part in options.without) or name not in (options.only or makers):
            continue
        try:
            found.append(make())
        except Failure as failure:
            say(f"left out: {failure}")
    return found


def of_ours(name: str, folder: Path) -> Peer:
    """Inflight over an engine directory. Raises `Failure` where it is none."""
    if not (folder / "engine.json").is_file():
        raise Failure(f"--engine {name}: {folder} is no engine directory, it has no engine.json.")
    return InflightPeer(_OURS + name, name, folder.absolute())


def pairings(names: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom: each of ours with every peer, our 16 bits only with those that have 16 bits.

    Of ours among themselves: int8-sq and the tuned one over int8.
    """
    ours = [name for name in names if name.startswith(_OURS) and name != ON_VLLM]
    theirs = [name for name in names if name not in ours]
    found = [(base, peer) for base in ours for peer in theirs if base != BITS16 or _has_16_bits(peer)]
    found += [(INT8, BITS16)] if {INT8, BITS16} <= set(names) else []
    found += [(name, INT8) for name in (INT8_SQ, TUNED) if {name, INT8} <= set(names)]
    return found + ([(ON_VLLM, "vllm")] if {ON_VLLM, "vllm"} <= set(names) else [])


def _has_16_bits(peer: str) -> bool:
    return peer.endswith("bf16") or peer in ("vllm", "transformers")
