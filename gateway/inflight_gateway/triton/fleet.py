"""Several Triton servers as one: each request goes to one that is ready, and to another where that one turns it away.

Whoever needs more than this takes Envoy or HAProxy (deploy/). What is in flight is counted here: other gateways, and
other workers of this one, count for themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence

from inflight_gateway.core.choice import Candidate, choose
from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, ModelRequest
from inflight_gateway.core.models import Model
from inflight_gateway.triton.channel import DOWN, TritonServer
from inflight_gateway.triton.health import ServerHealth

log = logging.getLogger("inflight_gateway.triton")

SHUNNED_S = 2.0  # that a server is left out which turned a request away, before it is tried again
# Nothing of the answer was there, and another server may well give it.
ELSEWHERE = (Kind.DOWN, Kind.DRAINING, Kind.RESTARTING, Kind.OVERLOADED)


class Member:
    """One server of the fleet."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.in_flight = 0
        self.shunned_until = 0.0

    def serves(self, model: str) -> bool:
        """Whether it has that model of Triton's, as far as it has said."""
        return self.server.ready and any(one.triton_name == model for one in self.server.models.values())


class Fleet:
    """What the gateway asks. `start` and `close` belong to the gateway's lifespan."""

    def __init__(self, addresses: Sequence[str], health: Sequence[str] = ()) -> None:
        """`addresses`: host:port of each Triton's gRPC; at least one. `health`: of each one's port of health, in the
        same order, as far as they have one. Raises `ValueError` for what is no host:port.
        """
        told = {address: ServerHealth(port) for address, port in zip(addresses, health, strict=False)}
        self.members = [Member(TritonServer(address, told.get(address))) for address in dict.fromkeys(addresses)]
        self._turn = 0

    async def start(self) -> None:
        """Connect to all of them, and begin to watch."""
        await asyncio.gather(*(one.server.start() for one in self.members))

    async def close(self) -> None:
        """End every watch and stream."""
        await asyncio.gather(*(one.server.close() for one in self.members))

    @property
    def ready(self) -> bool:
        """Whether any of them has a model."""
        return any(one.server.ready for one in self.members)

    def reason(self, model: str = "") -> str:
        """Why no new request to that model of Triton's, without a name to any of them, should come here; empty where
        one server is ready and willing.
        """
        asked = [one for one in self.members if not model or one.serves(model)] or self.members
        reasons = [one.server.unwilling(model) for one in asked]
        return "" if "" in reasons else reasons[0]

    @property
    def models(self) -> Mapping[str, Model]:
        """What can be asked for; of several servers the first one's word."""
        ready = [one.server.models for one in self.members if one.server.ready]
        if len(ready) == 1:
            return ready[0]
        found: dict[str, Model] = {}
        for models in reversed(ready or [self.members[0].server.models]):
            found |= models
        return found

    async def find(self, name: str) -> Model | None:
        """The model of that name, looked for once more where it is not known."""
        model = self.models.get(name)
        if model is not None:
            return model
        found = await asyncio.gather(*(one.server.find(name) for one in self.members))
        return next((one for one in found if one is not None), None)

    async def restarted(self, request: ModelRequest) -> None:
        """Return when one of the engines of that model has had time to start again."""
        asked = [one for one in self.members if one.serves(request.model)] or self.members
        waiting = [asyncio.create_task(one.server.restarted(request)) for one in asked]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def infer(self, request: ModelRequest) -> AsyncGenerator[Event, None]:
        """The events of one request, the last of which ends it. Raises `GatewayError`."""
        tried: set[Member] = set()
        while True:
            member = self._chosen(request, tried)
            tried.add(member)
            begun = False
            member.in_flight += 1
            try:
                async with contextlib.aclosing(member.server.infer(request)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except GatewayError as error:
                if begun or error.kind not in ELSEWHERE:
                    raise
                if error.kind is not Kind.OVERLOADED:
                    member.shunned_until = time.monotonic() + SHUNNED_S
                if not self._others(request, tried):
                    raise
                log.info("%s turns a request away, the next one gets it: %s", member.server.address, error.message)
            finally:
                member.in_flight -= 1

    def _others(self, request: ModelRequest, tried: set[Member]) -> list[Member]:
        return [one for one in self.members if one not in tried and one.serves(request.model)]

    def _chosen(self, request: ModelRequest, tried: set[Member]) -> Member:
        able = self._others(request, tried)
        if not able:  # none is ready: the one that has the model says best what is wrong
            if len(self.members) == 1 and not tried:
                return self.members[0]
            raise GatewayError(Kind.DOWN, DOWN)
        now = time.monotonic()
        willing = [one for one in able if one.shunned_until <= now and not one.server.unwilling(request.model)] or able
        self._turn += 1
        place = choose([Candidate(one.server.address, one.in_flight) for one in willing], request.affinity, self._turn)
        return willing[place]
