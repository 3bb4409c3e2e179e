"""What an application declares on its bus: handlers and checkers. No I/O."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from txbus._halflog.ledgerdesk import OwnChecker
from txbus._message import Topic
from txbus._retry import Retry
from txbus.errors import ConfigurationError

__all__ = ["CheckerDeclaration", "HandlerDeclaration", "InFlight", "Start"]

Start: TypeAlias = Literal["earliest", "latest"] | datetime
InFlight: TypeAlias = Literal["wait", "skip", "fail"]


@dataclass(frozen=True, slots=True, eq=False)
class HandlerDeclaration:
    """One ``@bus.on``. ``start`` is for a group that has no position yet; ``tags`` None means all."""

    topic: Topic[Any]
    function: Callable[..., Any]
    scope: str
    database: str | None
    retry: Retry
    in_flight: InFlight
    tags: frozenset[str] | None
    start: Start
    atomic: bool

    def __post_init__(self) -> None:
        where = f"handler {self.function.__qualname__!r} of topic {self.topic.name!r}"
        if not self.scope or len(self.scope) > 100 or not all(c.isalnum() or c in "._-" for c in self.scope):
            raise ConfigurationError(
                f"{where}: scope={self.scope!r} is not usable: 1 to 100 letters, digits, '_' or '-'"
            )
        if "." in self.scope:
            raise ConfigurationError(
                f"{where}: scope={self.scope!r} has a dot, and the consumer group '<service>.<scope>' could be that of "
                f"another service, whose name may have dots; use scope={self.scope.replace('.', '-')!r}"
            )
        if self.atomic and self.database is not None:
            raise ConfigurationError(
                f"{where}: atomic=True cannot join database={self.database!r}, because a broker transaction and a "
                "local transaction commit apart; use database=None, or leave atomic out for an inbox"
            )
        if self.in_flight not in ("wait", "skip", "fail"):
            raise ConfigurationError(f"{where}: in_flight={self.in_flight!r} must be 'wait', 'skip' or 'fail'")
        if not (self.start in ("earliest", "latest") or isinstance(self.start, datetime)):
            raise ConfigurationError(f"{where}: start={self.start!r} must be 'earliest', 'latest' or a datetime")
        if self.tags is not None and not self.tags:
            raise ConfigurationError(f"{where}: tags= is empty and would take nothing; leave it out for every message")
        if isinstance(self.start, datetime) and self.start.tzinfo is None:
            raise ConfigurationError(f"{where}: start={self.start!r} has no time zone: add tzinfo=UTC or your own")

    def group(self, service: str) -> str:
        """The consumer group: each scope of a service reads on its own.

        It is of one service and one scope only, because a scope has no dot."""
        return f"{service}.{self.scope}"

    @property
    def start_at(self) -> str | float:
        """`Subscription.start`."""
        return self.start.timestamp() if isinstance(self.start, datetime) else self.start


@dataclass(frozen=True, slots=True, eq=False)
class CheckerDeclaration:
    """One ``@bus.checker``."""

    topic: Topic[Any]
    function: OwnChecker

    def __post_init__(self) -> None:
        name = getattr(self.function, "__qualname__", None) or repr(self.function)
        where = f"checker {name!r} of topic {self.topic.name!r}"
        if inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004 - the method itself is looked at
        ):
            raise ConfigurationError(
                f"{where} is async: txbus is synchronous and would never await it; make it a plain function"
            )
        try:
            inspect.signature(self.function).bind(None, 1)
        except TypeError as exc:
            text = f"{where}: it is called with an Envelope and the number of the check: {exc}"
            raise ConfigurationError(text) from exc
