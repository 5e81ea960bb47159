#!/usr/bin/env python3
"""Checks the tests themselves: breaks what they are to guard, one thing at a time, and looks whether one of them fails.

Sources and tests are copied into a temporary folder, so nothing here is touched. A mutant that survives,
or that no longer fits the source, is an error (exit status 1).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from inflight_tools.common.layout import REPOSITORY

MACHINES = "tests/unit/machines"
LIMIT_S = 600.0
# Shrinking a failure takes minutes and says nothing here.
PLUGIN = """\
from hypothesis import HealthCheck, Phase, settings

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None,
                          deadline=None, suppress_health_check=[HealthCheck.too_slow])

def pytest_collection():
    settings.load_profile("mutants")
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """One thing broken: `old` is in `file` once, and becomes `new`; one of `tests` has to fail."""

    guard: str  # what it attacks
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


DELIVERY = (f"{MACHINES}/test_delivery_machine.py",)
STREAM = (f"{MACHINES}/test_stream_machine.py", "tests/unit/answer/test_stream.py", "tests/unit/answer/test_stops.py")
ADMISSION = (f"{MACHINES}/test_admission_machine.py", "tests/unit/serving/test_admission.py", *DELIVERY)
GUIDES = ("tests/unit/guides/test_service.py",)
ARRIVAL = ("tests/unit/serving/test_arrival.py",)

HOLD = ("tests/unit/serving/test_restart_hold.py", *DELIVERY)
PARSING = ("tests/unit/serving/test_parsing.py", "tests/unit/request/test_prompt.py")
FAULTS = ("tests/unit/engine_process/test_faults.py", f"{MACHINES}/test_faults_machine.py")
RUN_FOLDERS = ("tests/unit/engines/test_run_folder.py",)
REGIONS = ("tests/unit/tools/test_server.py::test_a_region_goes_with_the_stub_that_marked_it",)
CONTROL = ("tests/unit/control/test_control.py",)
LEAVING = ("tests/unit/serving/test_drain.py", "tests/unit/serving/test_drain_of_a_backend.py")
HEALTH = ("tests/unit/control/test_verdict.py", "tests/unit/control/test_health.py")
LOADS = ("tests/unit/test_model.py", "tests/unit/engine_process/test_launch.py")

MUTANTS = (
    # -- oversized prompts
    Mutant(
        "oversized prompts",
        "every thread may be busy with a large one",
        "serving/parsing.py",
        "self._lanes[: most + 1] if lane",
        "self._lanes if lane",
        PARSING,
    ),
    Mutant(
        "oversized prompts",
        "what cannot fit is tokenized to its end",
        "request/prompt.py",
        "            if counted > CERTAINLY * info.max_seq_len:\n",
        "            if False:\n",
        PARSING,
    ),
    # -- exactly one FINAL, and nothing after it
    Mutant(
        "FINAL once",
        "a stream goes on after its terminal response",
        "serving/delivery.py",
        "            live.closed = final\n",
        "            live.closed = False\n",
        DELIVERY,
    ),
    Mutant(
        "FINAL once",
        "an error is no terminal response",
        "serving/delivery.py",
        "            live.closed = True\n            self._answer(live, taken.error)\n",
        "            self._answer(live, taken.error)\n",
        DELIVERY,
    ),
    Mutant(
        "FINAL once",
        "a finished stream is taken once more",
        "answer/stream.py",
        "        if self.done:\n            return Taken([])\n",
        "",
        STREAM,
    ),
    Mutant(
        "FINAL once",
        "a failed send ends without a word",
        "serving/delivery.py",
        "            self._last_words(live)\n",
        "            live.closed = True\n",
        DELIVERY,
    ),
    Mutant(
        "FINAL once",
        "a lost engine's streams are forgotten",
        "serving/dispatcher.py",
        "            self._delivery.fail(job.live, error)\n        except",
        "            pass\n        except",
        DELIVERY,
    ),
    Mutant(
        "FINAL once",
        "what is held for an engine that is given up stays",
        "serving/dispatcher.py",
        "        self._no_engine = error\n        self._fail_all(error)\n",
        "        self._no_engine = error\n",
        HOLD,
    ),
    Mutant(
        "FINAL once",
        "a hold has no end",
        "serving/dispatcher.py",
        "                self._fail(job, _HELD_TOO_LONG)\n",
        "                pass\n",
        HOLD,
    ),
    Mutant(
        "one request harms no other",
        "what an engine died of is given to the next one",
        "serving/dispatcher.py",
        "            if request_id in self._queue:\n                self._hold(job)\n",
        "            if request_id in self._jobs:\n                self._hold(job)\n",
        HOLD,
    ),
    Mutant(
        "FINAL once",
        "Triton's sender is kept after the end",
        "serving/delivery.py",
        "            live.responder = _GONE\n",
        "            pass\n",
        DELIVERY,
    ),
    # -- the hold-back
    Mutant(
        "hold-back",
        "nothing is held back",
        "answer/stops.py",
        "        self.held = window[keep:]\n        return window[:keep], False\n",
        "        return window, False\n",
        STREAM,
    ),
    Mutant(
        "hold-back",
        "the longest stop string is given up a character too early",
        "answer/stops.py",
        "len(window) - self._longest + 1)",
        "len(window) - self._longest + 2)",
        STREAM,
    ),
    Mutant(
        "hold-back",
        "held text is lost at the end",
        "answer/stops.py",
        '        held, self.held = self.held, ""\n        return held\n',
        '        self.held = ""\n        return ""\n',
        STREAM,
    ),
    Mutant(
        "hold-back",
        "held text is never released",
        "answer/stops.py",
        "        return window[:keep], False\n",
        '        return "", False\n',
        STREAM,
    ),
    Mutant(
        "hold-back",
        "the stop string is emitted",
        "answer/stops.py",
        "            return window[:start], True\n",
        "            return window[:end], True\n",
        STREAM,
    ),
    # -- the reservation
    Mutant(
        "reservation",
        "blocks are not given back",
        "serving/admission.py",
        "        self.blocks_used -= reservation.blocks\n",
        "",
        ADMISSION,
    ),
    Mutant(
        "reservation",
        "the worst case forgets the answer",
        "serving/admission.py",
        "math.ceil((len(request.token_ids) + sampling.max_tokens) / block_size)",
        "math.ceil(len(request.token_ids) / block_size)",
        ADMISSION,
    ),
    Mutant(
        "reservation",
        "the pool's size is not looked at",
        "serving/admission.py",
        "            if self._blocks and self.blocks_used + reservation.blocks > self._blocks:\n",
        "            if False:\n",
        ADMISSION,
    ),
    Mutant(
        "reservation",
        "places are not looked at",
        "serving/admission.py",
        "            if self.places_used + reservation.sequences > self._places:\n",
        "            if False:\n",
        ADMISSION,
    ),
    Mutant(
        "reservation",
        "what has ended is not released",
        "serving/dispatcher.py",
        "                    self._events.put(functools.partial(self._release, output.request_id))\n",
        "                    pass\n",
        DELIVERY,
    ),
    Mutant(
        "reservation",
        "what is cancelled goes on in the engine",
        "serving/dispatcher.py",
        "        else:\n            self._say(frames.Cancel(live.request_id))\n",
        "",
        DELIVERY,
    ),
    Mutant(
        "reservation",
        "a sequence that we ended is left to the engine when the last one ends by itself",
        "answer/stream.py",
        "        goes_on = not all(sequence.is_over for sequence in self._sequences)\n",
        "        goes_on = not self._sequences[-1].is_over\n",
        DELIVERY,
    ),
    # -- one request harms nobody else
    Mutant(
        "one request alone",
        "whatever add raises ends the engine",
        "engines/faults.py",
        "    if isinstance(error, EngineBroken):\n        raise error\n    if isinstance(error, EngineRefusal):\n",
        "    if not isinstance(error, EngineRefusal):\n        raise error\n    else:\n",
        FAULTS,
    ),
    Mutant(
        "one request alone",
        "a slow add is taken for a stall",
        "engine_process/worker.py",
        "        self._page.write(WorkerState.ADDING if adding else WorkerState.IDLE, time.monotonic_ns())\n",
        "",
        ("tests/unit/engine_process/test_worker.py",),
    ),
    Mutant(
        "one request alone",
        "half of a request goes on in the engine",
        "engine_process/worker.py",
        "                self._undo(request.request_id)  # the engine may hold a part of it\n",
        "",
        FAULTS,
    ),
    Mutant(
        "one request alone",
        "an end said twice ends another sequence",
        "engine_process/roster.py",
        "            if index < 0 or not left >> index & 1:\n",
        "            if not left:\n",
        FAULTS,
    ),
    # -- the counters
    Mutant(
        "counters",
        "an end is counted twice",
        "serving/observation.py",
        '        metrics.observe("inflight_request_latency_seconds"',
        '        metrics.add("inflight_requests_total", label="stop")\n'
        '        metrics.observe("inflight_request_latency_seconds"',
        DELIVERY,
    ),
    Mutant(
        "counters",
        "a stream that ends during a flush is counted twice",
        "serving/observation.py",
        "tokens_of_ended + now.live_tokens",
        "self._tokens_of_ended + now.live_tokens",
        DELIVERY,
    ),
    Mutant(
        "counters",
        "tokens of ended streams are forgotten",
        "serving/observation.py",
        "            self._tokens_of_ended += stream.output_tokens\n",
        "            pass\n",
        DELIVERY,
    ),
    Mutant(
        "counters",
        "buckets are not cumulative",
        "serving/metrics.py",
        "                below += count\n",
        "                below = count\n",
        DELIVERY,
    ),
    Mutant(
        "counters",
        "a refusal is not counted",
        "serving/observation.py",
        '        self._metrics.add("inflight_requests_total", label=_OUTCOMES[error.code.value])\n',
        "        pass\n",
        DELIVERY,
    ),
    Mutant(
        "counters",
        "an engine's totals are lost with it",
        "serving/observation.py",
        "self._past, self._now, self._alive = _totals(self._past, self._now), EngineStats(), False",
        "self._now, self._alive = EngineStats(), False",
        ("tests/unit/serving/test_engine_lives.py",),
    ),
    # -- one client's trouble is no other's
    Mutant(
        "neighbours",
        "who waits for a guide is told what holds for another",
        "guides/service.py",
        "        _tell(left.intersection(asking), Decision(error=cancelled()))\n",
        "        _tell(asking if left else (), Decision(error=cancelled()))\n",
        GUIDES,
    ),
    # -- from its arrival on
    Mutant(
        "deadline",
        "it is looked at only once a request is queued",
        "backend/reader.py",
        "            self._dispatcher.watch(arrival, arrival.deadline)\n",
        "            pass\n",
        ARRIVAL,
    ),
    Mutant(
        "deadline",
        "nobody asks whether a client has left before its request is queued",
        "backend/model.py",
        "        return [*self._reader.arrivals.copy(), *self._live_streams()]\n",
        "        return [*self._live_streams()]\n",
        ARRIVAL,
    ),
    # -- the living are not swept, and others are not believed
    Mutant(
        "the living",
        "a run folder goes although its owner holds the lock",
        "engines/run_folder.py",
        "        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n        shutil",
        "        shutil",
        RUN_FOLDERS,
    ),
    Mutant(
        "the living",
        "a marked region counts as nobody's",
        "triton/region.py",
        "    except OSError:\n        return True\n",
        "    except OSError:\n        return False\n",
        REGIONS,
    ),
    Mutant(
        "the living",
        "another user's control folder will do",
        "control/folder.py",
        "status.st_uid == user and not status.st_mode & 0o077",
        "True",
        CONTROL,
    ),
    Mutant(
        "the living",
        "a drain goes to whoever listens",
        "control/server.py",
        " or (only is not None and process not in only)",
        "",
        CONTROL,
    ),
    # -- a fleet
    Mutant(
        "a fleet",
        "a drain refuses at once",
        "serving/drain.py",
        "return plan is not None and now >= plan.refuse_at",
        "return plan is not None",
        LEAVING,
    ),
    Mutant(
        "a fleet",
        "a second order gives notice once more",
        "serving/drain.py",
        "refuse_at = min(refuse_at, plan.refuse_at)",
        "pass",
        LEAVING,
    ),
    Mutant(
        "a fleet",
        "who waits ends a drain that was taken back",
        "serving/drain.py",
        "if plan is None or plan.number != number:",
        "if plan is None:",
        LEAVING,
    ),
    Mutant(
        "a fleet",
        "after the end of what was left nothing is served again",
        "backend/leaving.py",
        "            self._reopen()\n",
        "",
        LEAVING,
    ),
    Mutant(
        "a fleet",
        "what was heard long ago counts",
        "control/verdict.py",
        "if now - model.asked_at > PATIENCE_S:",
        "if False:",
        HEALTH,
    ),
    Mutant(
        "a fleet",
        "a model that Triton unloads is ready",
        "control/verdict.py",
        "if not triton.models.get(model.name):",
        "if False:",
        HEALTH,
    ),
    Mutant(
        "a fleet",
        "a model whose process is gone is not missed",
        "control/watch.py",
        "self._seen.add(facts.name)",
        "pass",
        HEALTH,
    ),
    Mutant(
        "a fleet",
        "a client that says nothing stays for ever",
        "control/health.py",
        "await asyncio.wait_for(self._converse(reader, writer), REQUEST_S)",
        "await self._converse(reader, writer)",
        HEALTH,
    ),
    # -- loads
    Mutant(
        "loads",
        "half of a surrogate pair reaches Triton",
        "errors.py",
        'return text.encode("utf-8", "replace").decode("utf-8")',
        "return text",
        LOADS,
    ),
    Mutant(
        "loads",
        "a path is taken as the stub's Python encodes it",
        "model/files.py",
        "    return Path(os.fsdecode(data))\n",
        "    return Path(text)\n",
        LOADS,
    ),
)


def copy_repository(target: Path) -> None:
    """Sources, scripts, tests and settings; no caches and no engine."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis", "*_cache")
    for name in ("python_backend", "scripts", "tests", "build_engine"):
        shutil.copytree(REPOSITORY / name, target / name, ignore=ignore)
    shutil.copy(REPOSITORY / "pyproject.toml", target)
    (target / "mutants_plugin.py").write_text(PLUGIN, encoding="utf-8")


def run_tests(folder: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """(whether all pass, the last lines of pytest's output)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "mutants_plugin", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=LIMIT_S,
        check=False,
    )
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with status {ended.returncode}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return ended.returncode == 0, ended.stdout[-400:]


def attack(folder: Path, mutant: Mutant) -> str:
    """Break one thing, run its tests, mend it; "" when a test failed, as it should, else what is wrong."""
    file = folder / "python_backend" / "inflight" / mutant.file
    source = file.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        return f"does not fit {mutant.file} any more: bring MUTANTS in scripts/maintain/mutation_check.py up to date"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        survived, _ = run_tests(folder, mutant.tests)
    except subprocess.TimeoutExpired:
        return ""  # a hang is noticed too
    finally:
        file.write_text(source, encoding="utf-8")
    return "survived: no test noticed it" if survived else ""


def main() -> int:
    """Attack with every mutant, or with those whose guard or name holds a word."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("word", nargs="?", default="", help="only mutants whose description holds this")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.word in f"{mutant.guard}: {mutant.name}"]
    failures = 0
    with tempfile.TemporaryDirectory(prefix="inflight-mutants-") as name:
        folder = Path(name)
        copy_repository(folder)
        healthy, output = run_tests(folder, tuple(sorted({test for mutant in chosen for test in mutant.tests})))
        if not healthy:
            print(f"error: the tests fail without any mutant: {output}", file=sys.stderr)
            return 1
        for mutant in chosen:
            began = time.monotonic()
            problem = attack(folder, mutant)
            failures += bool(problem)
            verdict = problem or "noticed"
            print(f"{mutant.guard}: {mutant.name}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(chosen) - failures} of {len(chosen)} mutants were noticed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
