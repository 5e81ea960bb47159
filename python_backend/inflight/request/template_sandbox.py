"""jinja2's sandbox for chat templates, in which no single expression makes any amount of text or takes any time.

A thread cannot be stopped in the middle of an expression, so the sandbox looks first: at the clock at every attribute,
item, call, operator, filter, test and turn of a loop; and at what an expression would make, from the sizes of what goes
into it, before it is computed. What fits into a context is a small part of the most that a template may make, so an
estimate that is too large costs nothing.

Not bounded: comparisons of lists that a template nests in each other again and again.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox
import jinja2.visitor

from inflight.request.template_sizes import ESTIMATES, PLAIN, formatted, size

LOOKS = 64  # at the clock, for each question whether anybody still waits
MAX_BITS = 1 << 16  # of a whole number that takes part in arithmetic
_WATCH, _CONCATENATE = "inflight watch", "inflight concatenate"  # filters that no template can name
_LEFT_OUT = ("urlize",)  # filters of web pages, with expressions of their own that take their time


class TemplateTimeout(Exception):
    """A template ran for longer, or would make more, than it may."""


def _nothing() -> None:
    return None


@dataclasses.dataclass(slots=True)
class Budget:
    """What one rendering may take: characters of any text, and seconds of `clock` until `deadline`. `go_on` is called
    now and then; what it raises ends the rendering.
    """

    most: int = 1 << 20
    deadline: float = float("inf")
    clock: Callable[[], float] = time.monotonic
    go_on: Callable[[], None] = _nothing
    looks: int = 0

    def look(self) -> None:
        """At the clock, and every so often whether anybody still waits."""
        self.looks += 1
        if self.clock() > self.deadline:
            raise TemplateTimeout
        if not self.looks % LOOKS:
            self.go_on()


class _Now(threading.local):
    """The budget of the rendering on this thread; while templates are compiled, one without an end."""

    budget = Budget()


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment whose templates are compiled once; each rendering has a budget of its own (`spending`)."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        self._now = _Now()
        super().__init__(optimized=False, finalize=_finalize, **options)
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters = {name: self._guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {_WATCH: self._watch, _CONCATENATE: self._concatenate}
        self.tests = {name: self._guarded("", function) for name, function in self.tests.items()}
        self.concat = self._join  # type: ignore[method-assign]

    @property
    def budget(self) -> Budget:
        """Of the rendering on this thread."""
        return self._now.budget

    def spending(self, budget: Budget) -> _Spending:
        """A context in which this thread's renderings have `budget`."""
        return _Spending(self._now, budget)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """A filter of ours, guarded like the others."""
        self.filters[name] = self._guarded(name, function)

    def check(self) -> None:
        """Look at the clock."""
        self._now.budget.look()

    def allow(self, size: int) -> None:
        """Refuse to make anything of more than the characters allowed."""
        if size > self._now.budget.most:
            raise TemplateTimeout

    # -- what jinja2 calls ---------------------------------------------------------------------------------------------

    def _generate(self, source: jinja2.nodes.Template, *arguments: Any, **options: Any) -> str:
        return super()._generate(_Guards().visit(source), *arguments, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.check()
        if operator == "+" and type(left) is type(right) is str:  # what templates do most
            self.allow(len(left) + len(right))
            return left + right
        numbers = [each for each in (left, right) if isinstance(each, int)]
        if operator == "%" and isinstance(left, (str, bytes)):
            self.allow(formatted(left, right, self.budget.most))
        elif len(numbers) == 2:
            bits = [number.bit_length() for number in numbers]
            if max(bits) > MAX_BITS or (operator == "**" and bits[0] * abs(right) > MAX_BITS):
                raise TemplateTimeout
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if hasattr(repeated, "__len__") and isinstance(times, int):
                    self.allow(len(repeated) * times)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.allow(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.check()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.check()
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self.check()
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        subject = getattr(method, "__self__", None)
        if isinstance(subject, (str, bytes)):
            args = __self._look("method " + method.__name__, (subject, *args), kwargs)[1:]
        elif isinstance(subject, int):
            __self._look("method of a number", (subject, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    # -- the guards --------------------------------------------------------------------------------------------------

    def _guarded(self, name: str, function: Any) -> Callable[..., Any]:
        given = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0  # jinja2's own first argument

        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            self.check()
            return function(*args[:given], *self._look(name, args[given:], kwargs), **kwargs)

        return guarded

    def _look(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a filter or method, once it is clear that the result will not be too large."""
        most = self.budget.most
        if name == "round" or name.startswith("method"):  # of the others' numbers the estimates think
            self.allow(max((abs(each) for each in (*args[1:], *kwargs.values()) if isinstance(each, int)), default=0))
        place = {"join": 0, "method join": 1, "sum": 0, "sort": 0, "unique": 0}.get(name)
        if place is not None and len(args) > place and not isinstance(args[place], (str, Sequence, Mapping)):
            args = (*args[:place], list(self._watch(args[place])), *args[place + 1 :])
        if name in PLAIN and len(args) == 1 and type(args[0]) is str and not kwargs:
            self.allow(len(args[0]))
            return args
        estimate = ESTIMATES.get(name)
        if estimate is not None and args:
            self.allow(estimate(most, *args, **kwargs))
        return args

    def _watch(self, items: Iterable[Any]) -> Iterator[Any]:
        """What a loop goes through."""
        for count, item in enumerate(items):
            self.check()
            self.allow(count)
            yield item

    def _concatenate(self, values: list[Any]) -> str:
        self.check()
        self.allow(size(values, self.budget.most))
        return "".join(map(str, values))

    def _join(self, pieces: Iterable[str]) -> str:
        """The text of a block or macro."""
        pieces = list(pieces)
        self.allow(sum(map(len, pieces)))
        return "".join(pieces)


class _Spending:
    def __init__(self, now: _Now, budget: Budget) -> None:
        self._now, self._budget = now, budget

    def __enter__(self) -> None:
        self._now.budget = self._budget

    def __exit__(self, *_: object) -> None:
        del self._now.budget


class _Guards(jinja2.visitor.NodeTransformer):
    """Puts filters of ours where jinja2 asks nobody: around what a loop goes through, and in place of `~`."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filter(_WATCH, node.iter)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filter(_CONCATENATE, jinja2.nodes.List(node.nodes, lineno=node.lineno))


def _filter(name: str, node: Any) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context
def _finalize(context: Any, value: Any) -> Any:
    """What is put out: a list or the like may be far longer as text than it is in memory."""
    environment: Sandbox = context.environment
    if not isinstance(value, (str, int, float)):
        environment.allow(size(value, environment.budget.most))
    return value
