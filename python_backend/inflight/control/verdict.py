"""What is known of a server → whether to send requests there, and why not. Pure: no socket, no clock.

Whatever has not been heard for `PATIENCE_S` counts for nothing, so that no verdict is older than that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

PATIENCE_S = 0.9
MAX_REASON = 200  # characters of a reason in the line for HAProxy


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFacts:
    """What one model said. `asked_at` is the monotonic time of the question, in seconds."""

    name: str
    asked_at: float
    ready: bool
    health: str  # one word (serving/drain.py)
    reason: str
    phase: str  # of a drain; "serving": none
    under_way: int = 0  # requests
    limit: int = 0  # of them


@dataclasses.dataclass(frozen=True, slots=True)
class TritonFacts:
    """What is known of Triton itself. Without `asked_at` it has never answered."""

    asked_at: float | None = None
    live: bool = False
    ready: bool = False
    models: Mapping[str, bool] = dataclasses.field(default_factory=dict)  # those that it was asked about: is it ready?
    runs: bool | None = None  # whether its process does, where somebody knows
    stopping: bool = False  # whether it was told to


@dataclasses.dataclass(frozen=True, slots=True)
class ModelVerdict:
    """One model. `counts`: whether the server is not ready when this model is not."""

    ready: bool
    health: str
    reason: str
    phase: str = "serving"
    under_way: int = 0
    limit: int = 0
    counts: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The whole server."""

    live: bool
    ready: bool
    reason: str
    leaving: bool  # not ready because it is to leave: what it has begun it will finish
    models: Mapping[str, ModelVerdict]

    def as_json(self) -> dict[str, Any]:
        """For a probe, and for who reads its answer."""
        names = ("ready", "health", "reason", "phase", "under_way", "limit")
        models = {key: {name: getattr(model, name) for name in names} for key, model in self.models.items()}
        return {"live": self.live, "ready": self.ready, "reason": self.reason, "models": models}

    def agent_line(self) -> str:
        """For HAProxy's agent-check: `up ready` takes back what the other two did. The weight is left alone."""
        if self.ready:
            return "up ready"
        reason = " ".join(self.reason.encode("ascii", "replace").decode().split())[:MAX_REASON]
        return "drain" if self.leaving else f"down # {reason}"


def judge(triton: TritonFacts, models: Sequence[ModelFacts], wanted: Collection[str], now: float) -> Verdict:
    """The verdict of `now` (monotonic seconds) out of what each model said last.

    `wanted` are models without which the server is not ready. Of others, one that Triton is loading or unloading does
    not count. Several models of one name (of two servers, in one folder) are told apart by numbers.
    """
    said = [_judge_model(model, triton, model.name in wanted, now) for model in models]
    verdicts: dict[str, ModelVerdict] = {}
    for model, verdict in zip(models, said, strict=True):
        number = sum(1 for other in models[: len(verdicts)] if other.name == model.name)
        verdicts[f"{model.name}~{number}" if number else model.name] = verdict
    for name in {*wanted, *(name for name, ready in triton.models.items() if ready)} - {model.name for model in models}:
        verdicts[name] = _without_a_process(name, triton)
    if triton.stopping:
        verdicts = {name: _stopping(model) for name, model in verdicts.items()}
    elif absence := _absence(triton, now):
        verdicts = {name: _behind(model, absence) for name, model in verdicts.items()}
    failed = any(model.health == "failed" for model in verdicts.values())
    reason, leaving = _reason(triton, verdicts, now)
    return Verdict(_lives(triton, now) and not failed, not reason, reason, leaving, dict(sorted(verdicts.items())))


def _judge_model(model: ModelFacts, triton: TritonFacts, wanted: bool, now: float) -> ModelVerdict:
    facts = (model.phase, model.under_way, model.limit)
    if now - model.asked_at > PATIENCE_S:
        return ModelVerdict(False, "silent", f"its process has not answered for {now - model.asked_at:.1f} s", *facts)
    if not model.ready:
        return ModelVerdict(False, model.health, model.reason, *facts)
    if not triton.models.get(model.name):
        reason = "Triton does not report it as ready: it is being loaded or unloaded"
        return ModelVerdict(False, "unavailable", reason, *facts, counts=wanted)
    return ModelVerdict(True, model.health, "", *facts)


def _stopping(model: ModelVerdict) -> ModelVerdict:
    if not model.ready and model.health != "lost":
        return model
    return dataclasses.replace(model, ready=False, health="stopping", reason="the server is stopping")


def _behind(model: ModelVerdict, absence: str) -> ModelVerdict:
    """A model's own process answers, but what would take its requests does not."""
    return dataclasses.replace(model, ready=False, health="silent", reason=absence) if model.ready else model


def _without_a_process(name: str, triton: TritonFacts) -> ModelVerdict:
    """A model of which no process answers, and which somebody wants or Triton takes for ready."""
    if triton.models.get(name):
        return ModelVerdict(False, "lost", "its process is gone; unload and load the model, or restart the server")
    return ModelVerdict(False, "unavailable", "it is not loaded")


def _reason(triton: TritonFacts, models: Mapping[str, ModelVerdict], now: float) -> tuple[str, bool]:
    """Why the server as a whole is not ready, '' when it is; and whether it is leaving."""
    if triton.stopping:
        return "the server is stopping", True
    absence = _absence(triton, now)
    if triton.runs is False:
        return absence, False
    not_ready = {name: model for name, model in models.items() if model.counts and not model.ready}
    leaving = any(model.phase != "serving" for model in not_ready.values())
    if absence and not leaving:
        return absence, False
    if not_ready:
        return "; ".join(f"model {name}: {model.reason}" for name, model in sorted(not_ready.items())), leaving
    if not any(model.ready for model in models.values()):
        return "no model is loaded", False
    return ("", False) if triton.ready else ("Triton reports that it is not ready", False)


def _absence(triton: TritonFacts, now: float) -> str:
    """Why no request can be taken by Triton, '' when it answers."""
    if triton.runs is False:
        return "tritonserver has ended"
    if triton.asked_at is None:
        return "Triton has not answered yet: it is loading its models" if triton.runs else "nothing answers as Triton"
    return f"Triton has not answered for {now - triton.asked_at:.1f} s" if now - triton.asked_at > PATIENCE_S else ""


def _lives(triton: TritonFacts, now: float) -> bool:
    """Whether nothing would be gained by starting the server again."""
    if triton.runs is False:
        return False
    if triton.stopping or (triton.runs and triton.asked_at is None):
        return True
    return triton.live and not _absence(triton, now)
