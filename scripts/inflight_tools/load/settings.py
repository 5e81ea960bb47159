"""What a load test asked for and where it ran, in words for a table. Pure.

The values are those of a results.json, of this release or of an older one: what it does not say is left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "latency": "latency"}
_ONLY_HERE = ("compare", "output", "timeout", "perf_analyzer")  # say nothing about what was measured
# Options as they are written again, in this order, where they were given.
_OPTIONS = (
    *("url", "model", "concurrency", "rate", "arrivals", "prompt_tokens", "max_tokens", "stop_at_eos", "seed"),
    *("parameter", "requests", "warmup", "runs", "slo", "price_per_hour"),
)


def settings_rows(settings: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for: name → value."""
    rate, most = settings.get("rate"), settings.get("requests")
    found = {
        "Server": settings.get("url"),
        "Model": settings.get("model"),
        "Load": _load(settings),
        "Prompts": _lengths(settings.get("prompt_tokens")),
        "Answers": _answers(settings),
        "Further parameters": ", ".join(map(str, settings.get("parameter") or ())),
        "Requests of a run": most or ("at least 32" if rate else "4 × the concurrency, at least 32"),
        "Warm-up of a run": _warm_up(settings),
        "Runs of each level": _runs(settings.get("runs")),
        "Seed of the prompts": settings.get("seed"),
        "Limits (SLO)": limits_in_words(limits(settings)),
        "Price of the machine": None
        if not settings.get("price_per_hour")
        else f"{settings['price_per_hour']:g} an hour",
    }
    known = {*_OPTIONS, *_ONLY_HERE}
    found.update({name: value for name, value in settings.items() if name not in known})
    if not settings:
        return {}
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def machine_rows(about: Mapping[str, Any]) -> dict[str, str]:
    """Where it was measured: name → value."""
    client, server = about.get("client_machine") or {}, about.get("server") or {}
    found = {
        "Processor": client.get("processor"),
        "CPUs": client.get("cpus"),
        "Memory": _gib(client.get("memory")),
        "Architecture": client.get("architecture"),
        "System": client.get("system"),
        "Python": client.get("python"),
        "Load generator": client.get("perf_analyzer"),
        "Server": _server(server),
        "Engine": " ".join(str(server[name]) for name in ("engine", "engine_version") if server.get(name)),
        "Context of the model": f"{server['context']:,} tokens" if isinstance(server.get("context"), int) else None,
        "Server's place": _place(server),
        "Finished": str(about.get("finished") or "").replace("T", " "),
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def limits(settings: Mapping[str, Any]) -> dict[str, float]:
    """The service-level objective in milliseconds, by ttft, tpot and latency."""
    found = {}
    for text in settings.get("slo") or ():
        name, _, value = str(text).partition("=")
        if name in _NAMES:
            found[name] = float(value)
    return found


def limits_in_words(found: Mapping[str, float]) -> str:
    """`TTFT ≤ 200 ms and TPOT ≤ 50 ms`."""
    return " and ".join(f"{_NAMES[name]} ≤ {value:g} ms" for name, value in found.items())


def command(settings: Mapping[str, Any]) -> str:
    """The line that measures the same again."""
    line = ["inflight", "load-test"]
    for name in _OPTIONS:
        value, option = settings.get(name), f"--{name.replace('_', '-')}"
        if value in (None, False, [], 0) or (name == "arrivals" and not settings.get("rate")):
            continue
        if value is True:
            line.append(option)
        elif name in ("parameter", "slo"):
            line += [part for each in value for part in (option, str(each))]
        else:
            line += [option, _joined(value) if isinstance(value, list) else str(value)]
    return shlex.join(line)


def _load(settings: Mapping[str, Any]) -> str:
    rates = settings.get("rate")
    if rates:
        return f"{_joined(rates, ', ')} requests sent per second, {settings.get('arrivals', 'poisson')} arrivals"
    return f"{_joined(settings.get('concurrency') or [1, 4, 16], ', ')} requests in flight"


def _answers(settings: Mapping[str, Any]) -> str | None:
    lengths = _lengths(settings.get("max_tokens"))
    if lengths is None:
        return None
    return f"up to {lengths}, which may end by themselves" if settings.get("stop_at_eos") else lengths


def _lengths(text: Any) -> str | None:
    if text is None:
        return None
    kind, _, rest = str(text).partition(":")
    if kind == "uniform":
        return f"{rest.replace('-', ' to ')} tokens, evenly spread"
    if kind == "sharegpt":
        return f"long-tailed as in ShareGPT, {rest + ' tokens' if rest else 'its own mean'} on average"
    return f"{text} tokens"


def _warm_up(settings: Mapping[str, Any]) -> str:
    count = settings.get("warmup")
    if count is None:
        return "1 request" if settings.get("rate") else "as many as are in flight"
    return f"{count} requests" if count != 1 else "1 request"


def _runs(count: Any) -> str | None:
    if count is None:
        return None
    return "1" if count == 1 else f"{count}, the levels in turns"


def _server(server: Mapping[str, Any]) -> str:
    parts = [f"Triton {server['triton']}"] if server.get("triton") else []
    return ", ".join(parts + ([f"Inflight {server['release']}"] if server.get("release") else []))


def _place(server: Mapping[str, Any]) -> str | None:
    if "same_machine" not in server:
        return None
    return "the same machine" if server["same_machine"] else "another machine"


def _gib(size: Any) -> str | None:
    return f"{size / 2**30:.1f} GiB" if isinstance(size, (int, float)) else None


def _joined(values: Sequence[Any], between: str = ",") -> str:
    return between.join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)
