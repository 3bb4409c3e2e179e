"""How often, and after how long, a handler runs again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from txbus.errors import ConfigurationError, GiveUp

__all__ = ["Retry"]


@dataclass(frozen=True, slots=True)
class Retry:
    """Capped exponential backoff with jitter.

    ``max_attempts`` counts runs, the first included (1 to 10,000). ``backoff_s`` is the wait
    before the second run and the cap. Each wait is the doubled one before it, less a random share
    of up to ``jitter`` (0 to 1). ``per_exception`` gives other waits to an exception class and its
    subclasses (the nearest class in the exception's MRO counts); an empty tuple means no further
    run: dead letter at once.
    """

    max_attempts: int = 8
    backoff_s: tuple[float, float] = (0.5, 60.0)
    jitter: float = 0.5
    per_exception: Mapping[type[BaseException], tuple[float, float] | tuple[()]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.max_attempts <= 10_000:
            raise ConfigurationError(f"Retry: max_attempts={self.max_attempts} must be 1 to 10,000")
        if not 0.0 <= self.jitter <= 1.0:
            raise ConfigurationError(f"Retry: jitter={self.jitter} must be 0 to 1")
        for waits in (self.backoff_s, *self.per_exception.values()):
            if waits and not 0.0 <= waits[0] <= waits[1]:
                raise ConfigurationError(f"Retry: backoff_s={waits} must be (first, cap) with 0 <= first <= cap")

    def delay_s(self, attempts: int, error: BaseException, chance: float) -> float | None:
        """Seconds to wait after ``attempts`` runs, the last one ending in ``error``; None to give up.

        ``chance`` in [0, 1) spreads the wait.
        """
        assert attempts >= 1 and 0.0 <= chance < 1.0
        waits = self._waits(error)
        if isinstance(error, GiveUp) or attempts >= self.max_attempts or not waits:
            return None
        first, cap = waits
        return min(cap, first * 2.0 ** min(attempts - 1, 60)) * (1.0 - self.jitter * chance)

    def never_for(self, *exceptions: type[BaseException]) -> Retry:
        """The same schedule, with a dead letter at once for these."""
        return replace(self, per_exception={**self.per_exception, **dict.fromkeys(exceptions, ())})

    def horizon_s(self) -> float:
        """The longest time from the first run to the last, without the runs themselves."""
        longest = 0.0
        for waits in (self.backoff_s, *self.per_exception.values()):
            if waits:
                first, cap = waits
                total = sum(min(cap, first * 2.0 ** min(n, 60)) for n in range(self.max_attempts - 1))
                longest = max(longest, total)
        return longest

    def _waits(self, error: BaseException) -> tuple[float, float] | tuple[()]:
        for cls in type(error).__mro__:
            if cls in self.per_exception:
                return self.per_exception[cls]
        return self.backoff_s
