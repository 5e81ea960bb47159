"""Guides of requests: checked before the engine sees them, each at the cost of its own request.

    parse pool ──known? the verdict──▶ on its way
               ──new?   thread inflight-guides ⇄ process guides.worker ──▶ back into the pool

What a guide may be is decided in three steps. Before any work (`beforehand`): limits that cost nothing, and what does
not go with a guide. In the process: the guide becomes a grammar with one way to read every text (`inflight.grammar`),
and the engine's own compiler compiles it, at a cost that bounds how long the engine will stall.
Verdicts are kept, the good and the bad ones, so a guide that repeats costs nothing.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from inflight.engines.base import Guide
from inflight.errors import RequestError, cancelled, invalid, unavailable, unsupported
from inflight.guides.beforehand import NAME, check_limits
from inflight.guides.cost import Cost, Spent, judge, scaled
from inflight.guides.frames import Check, LinkError, Start, Verdict
from inflight.guides.process import GuideProcess, TooLong

log = logging.getLogger("inflight.guides")

JOIN_S = 10.0
UNLOADED = "the model is being unloaded; send the request to another server"


@dataclasses.dataclass(frozen=True, slots=True)
class GuideLimits:
    """`check_s`: seconds of processor time that a check may take before it is killed. `compile_s`: what the engine's
    compiler may take of them, because the engine will stall for it once (for half as long where two processors are
    free: it computes in several threads). Both grow with the vocabulary (`cost`), until `compile_s` is
    `most_compile_s`. `waiting`: new guides that may wait for their check, each for `patience_s` seconds.
    `known`, `known_bytes`: verdicts that are kept, by number and by the size of their grammars. `spare_bytes`: address
    space that a check may use.
    """

    check_s: float = 3.0
    compile_s: float = 2.0
    most_compile_s: float = 5.0
    waiting: int = 256
    patience_s: float = 10.0
    known: int = 4_096
    known_bytes: int = 64 << 20
    spare_bytes: int = 2 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Decision:
    """What became of a guide: the `guide` for the engine, or the `error` for the client."""

    guide: Guide | None = None
    error: RequestError | None = None

    def take(self) -> Guide:
        """The guide for the engine. Raises the error."""
        if self.guide is None:
            raise self.error if self.error is not None else unavailable("the guide could not be checked; try again")
        return self.guide


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Asker:
    """Who waits for a check, and since when (monotonic)."""

    done: Callable[[Decision], None]
    gone: Callable[[], bool]
    since: float
    who: object


class NewGuide(Exception):
    """A guide that has to be checked first (`GuideService.ask`)."""

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.guide = guide


class GuideService:
    """Checks guides one at a time in a process of its own, which is started for the first one. Thread-safe."""

    def __init__(
        self,
        engine: str,
        engine_dir: str,
        limits: GuideLimits | None = None,
        python: str = "",
        changed: Callable[[], str] = lambda: "",
    ) -> None:
        """`python` is the engine's own interpreter; empty: this one. `changed` says why the engine directory is not
        what the model was loaded with; empty: it is.
        """
        self._python = python
        self._changed = changed
        self._limits = limits or GuideLimits()
        self._start_message = Start(engine, engine_dir, self._limits.spare_bytes)
        self._known: collections.OrderedDict[bytes, tuple[Decision, int]] = collections.OrderedDict()
        self._known_bytes = 0
        self._asking: dict[bytes, list[_Asker]] = {}
        self._queue: queue.SimpleQueue[tuple[bytes, Guide] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._process: GuideProcess | None = None
        self._refusal = ""  # why this model cannot be guided at all
        self.checks = 0
        self.kills = 0

    @property
    def pid(self) -> int:
        """The process that checks; 0 while there is none."""
        process = self._process
        return process.pid if process is not None else 0

    def decide(self, guide: Guide, decision: Decision | None) -> Guide:
        """The guide for the engine, by a decision just made or one that is known. Raises `NewGuide` when there is none,
        and the `RequestError` of a guide that is refused.
        """
        found = decision or self.known(guide)
        if found is None:
            raise NewGuide(guide)
        return found.take()

    def known(self, guide: Guide) -> Decision | None:
        """The decision on a guide that was checked before. Raises INVALID_ARG for what `check_limits` refuses."""
        key = _key(guide)
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
                return found[0]
        check_limits(guide)
        return None

    def ask(
        self,
        guide: Guide,
        done: Callable[[Decision], None],
        gone: Callable[[], bool] = lambda: False,
        who: object = "",
    ) -> Callable[[], bool]:
        """Have a guide checked. `done` is called once, here or on the service's thread; it must not block. `gone` says
        whether nobody waits for it any more; it is not asked after `done`. What is given back withdraws the question:
        true when it was still open, and `done` will not be called. `who` is for the log.
        """
        key = _key(guide)
        asker = _Asker(done, gone, time.monotonic(), who)
        with self._lock:
            known = self._known.get(key)
            if known is not None:  # since it was looked for
                answer = known[0]
            elif self._stopped:
                answer = Decision(error=unavailable(UNLOADED))
            elif key in self._asking:
                self._asking[key].append(asker)
                return lambda: self._withdraw(key, asker)
            elif len(self._asking) > self._limits.waiting:
                waiting = f"{len(self._asking)} new guides are waiting for their check; try again in a moment"
                answer = Decision(error=unavailable(waiting))
            else:
                self._asking[key] = [asker]
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="inflight-guides", daemon=True)
                    self._thread.start()
                self._queue.put((key, guide))
                return lambda: self._withdraw(key, asker)
        done(answer)
        return lambda: False

    def _withdraw(self, key: bytes, asker: _Asker) -> bool:
        with self._lock:
            askers = self._asking.get(key, [])
            if asker not in askers:
                return False
            askers.remove(asker)  # a list that is empty now keeps its place in the queue, and ends there unchecked
            return True

    def stop(self) -> None:
        """Answer who waits, and end the process."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        process = self._process
        if process is not None:
            process.interrupt()
        self._queue.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def _run(self) -> None:
        while True:
            asked = self._queue.get()
            if asked is None:
                break
            self._serve(*asked)
        self._end_process()
        with self._lock:
            left = list(self._asking)
        for key in left:
            self._answer(key, Decision(error=unavailable(UNLOADED)), False)

    def _serve(self, key: bytes, guide: Guide) -> None:
        """One turn of the thread."""
        if not self._is_wanted(key):
            return
        try:
            decision, keep = self._decide(guide)
        except Exception:
            log.exception("checking a guide failed")
            decision, keep = Decision(error=unavailable("the guide could not be checked; try again")), False
        self._answer(key, decision, keep)

    def _is_wanted(self, key: bytes) -> bool:
        """Whether anybody waits for this check. Who has left, or has waited too long, is told so here, each by what
        holds for itself: others may join at any time, and wait on.
        """
        with self._lock:
            askers = list(self._asking[key])
        left = {asker for asker in askers if _has_left(asker)}
        latest = time.monotonic() - self._limits.patience_s
        late = {asker for asker in askers if asker.since < latest} - left
        with self._lock:
            asking = self._asking[key]  # without those who have withdrawn meanwhile
            waiting = [asker for asker in asking if asker not in left and asker not in late]
            wanted = bool(waiting)  # whoever withdraws from now on takes itself off this list
            if wanted:
                self._asking[key] = waiting
            else:
                del self._asking[key]
        _tell(left.intersection(asking), Decision(error=cancelled()))
        _tell(
            late.intersection(asking),
            Decision(error=unavailable("too many new guides are being checked; try again in a moment")),
        )
        return wanted

    def _answer(self, key: bytes, decision: Decision, keep: bool) -> None:
        with self._lock:
            if keep:
                self._keep(key, decision)
            waiting = self._asking.pop(key, [])
        _tell(waiting, decision)

    def _keep(self, key: bytes, decision: Decision) -> None:
        size = len(decision.guide.text.encode()) if decision.guide is not None else 0
        self._known_bytes += size - self._known.pop(key, (decision, 0))[1]
        self._known[key] = (decision, size)
        while len(self._known) > self._limits.known or self._known_bytes > self._limits.known_bytes:
            _, (_, freed) = self._known.popitem(last=False)
            self._known_bytes -= freed

    def _decide(self, guide: Guide) -> tuple[Decision, bool]:
        """The decision, and whether it holds for good."""
        crashes = 0
        for attempt in (1, 2):
            if self._stopped:
                return Decision(error=unavailable(UNLOADED)), False
            if self._refusal:
                return self._unguided(), True
            checking = False
            try:
                fresh = self._process is None
                process = self._running()
                changed = self._changed() if fresh else ""
                if changed:  # it would judge by another tokenizer than the engine has
                    self._end_process()
                    return Decision(error=unavailable(changed)), False
                self._refusal = process.refusal
                if self._refusal:
                    self._end_process()  # it has nothing more to say
                    return self._unguided(), True
                self.checks += 1
                checking = True
                compile_s = scaled(self._limits.compile_s, process.vocab_size, self._limits.most_compile_s)
                check_s = self._limits.check_s + compile_s - self._limits.compile_s
                verdict = process.check(Check(guide.kind, guide.text, guide.thought), check_s)
            except TooLong as error:
                self._end_process()
                self.kills += 1
                return (_busy(), False) if error.busy else (_too_long(check_s), True)
            except LinkError as error:
                crashes += checking and process.crashed()
                self._end_process()
                log.warning("the process that checks guides was lost (attempt %d): %s", attempt, error)
            else:
                if verdict.last:
                    self._end_process()
                return _decision(verdict, compile_s)
        if crashes == 2:
            return Decision(error=invalid(NAME, "crashes the grammar compiler; write it in another way")), True
        return Decision(error=unavailable("the guide could not be checked; try again")), False

    def _unguided(self) -> Decision:
        return Decision(error=unsupported("guided_decoding_guide_type", self._refusal))

    def _running(self) -> GuideProcess:
        """The process, ready. Raises `LinkError`."""
        process = self._process
        if process is None:
            process = self._process = GuideProcess(self._start_message, self._python)
            if self._stopped:  # `stop` may have looked before there was one
                process.interrupt()
            process.wait_ready()
        return process

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.close()


def _decision(verdict: Verdict, compile_s: float) -> tuple[Decision, bool]:
    """The decision, and whether it holds for good."""
    if verdict.problem:
        return Decision(error=invalid(NAME, verdict.problem)), True
    cost = judge(Spent(verdict.compile_s, verdict.wall_s, verdict.others), compile_s)
    if cost is Cost.UNKNOWN:
        return _busy(), False
    if cost is Cost.TOO_HIGH:
        return _too_long(compile_s), True
    return Decision(guide=Guide("ebnf_grammar", verdict.grammar)), True


def _busy() -> Decision:
    return Decision(error=unavailable("the server is too busy to check a new guide; try again"))


def _too_long(limit_s: float) -> Decision:
    return Decision(
        error=invalid(
            NAME,
            f"takes too long to compile (more than {limit_s:.1f} s); use smaller repetition counts and lengths, or "
            "fewer alternatives",
        )
    )


def _has_left(asker: _Asker) -> bool:
    try:
        return asker.gone()
    except Exception:
        log.exception("request %s: asking whether its client has left failed", asker.who)
        return False


def _tell(askers: Iterable[_Asker], decision: Decision) -> None:
    """Call them back; one's trouble is no other's."""
    for asker in askers:
        try:
            asker.done(decision)
        except Exception:
            log.exception("request %s could not go on after its guide was checked", asker.who)


def _key(guide: Guide) -> bytes:
    return hashlib.sha256(f"{guide.kind}\0{guide.thought}\0{guide.text}".encode("utf-8", "surrogatepass")).digest()
