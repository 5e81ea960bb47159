"""One or several requests to a model as one stream of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from inflight_gateway.core.errors import GatewayError, Kind
from inflight_gateway.core.events import Event, ModelRequest

MOST_WAITING = 64  # events of several prompts that nobody has taken yet

Infer = Callable[[ModelRequest], AsyncGenerator[Event, None]]


def run(
    infer: Infer, requests: Sequence[ModelRequest], restarted: Callable[[ModelRequest], Awaitable[None]]
) -> AsyncGenerator[Event, None]:
    """The events of all requests. Of several prompts the choices are numbered prompt by prompt. Raises `GatewayError`;
    all that is still under way ends with the iterator. `restarted` is awaited before a request that met a restarting
    engine is sent once more.
    """
    if len(requests) == 1:
        return _once_more(infer, requests[0], restarted)
    return _together(infer, requests, restarted)


async def _together(
    infer: Infer, requests: Sequence[ModelRequest], restarted: Callable[[ModelRequest], Awaitable[None]]
) -> AsyncGenerator[Event, None]:
    """The events of several requests as they come; none of them is marked as the last one."""
    queue: asyncio.Queue[Event | BaseException | None] = asyncio.Queue(MOST_WAITING)

    async def one(number: int, request: ModelRequest) -> None:
        ended: BaseException | None = None
        try:
            async with contextlib.aclosing(_once_more(infer, request, restarted)) as events:
                async for event in events:
                    event.choice += number * request.sequences
                    event.prompt = number
                    event.last = False
                    await queue.put(event)
        except Exception as error:  # noqa: BLE001 - told to whoever reads the queue
            ended = error
        await queue.put(ended)

    tasks = [asyncio.create_task(one(number, request)) for number, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()


async def _once_more(
    infer: Infer, request: ModelRequest, restarted: Callable[[ModelRequest], Awaitable[None]]
) -> AsyncGenerator[Event, None]:
    """The events of one request, which is sent a second time where the engine was restarting and nothing had come."""
    begun = False
    try:
        async with contextlib.aclosing(infer(request)) as events:
            async for event in events:
                begun = True
                yield event
        return
    except GatewayError as error:
        if begun or error.kind is not Kind.RESTARTING:
            raise
    await restarted(request)
    async with contextlib.aclosing(infer(request)) as events:
        async for event in events:
            yield event
