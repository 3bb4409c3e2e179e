"""The entry point: what the broker promises, and how a URL becomes a backend."""

from __future__ import annotations

from typing import Final

from txbus.errors import SettingsError
from txbus.spi import Backend, BackendPlugin, BackendURL, Capabilities, Capability, Limits, Ports, TopicKind

__all__ = ["CAPABILITIES", "DirbusPlugin", "plugin"]

CAPABILITIES: Final = Capabilities(
    native=frozenset(
        {
            Capability.DURABLE_SEND,
            Capability.ATOMIC_SEND,
            Capability.ORDER_BY_KEY,
            Capability.SINGLE_OWNER,
            Capability.TAG_FILTER,
            Capability.NATIVE_REDELIVERY,
            Capability.ATTEMPTS_COUNTED,
            Capability.NATIVE_DEAD_LETTER,
            Capability.HALF_MESSAGE,
        }
    ),
    limits=Limits(payload_bytes_max=1 << 20, headers_bytes_max=16 << 10, delay_s_max=None, partitions_max=None),
)


class DirbusPlugin:
    """Makes backends for ``dirbus:///directory?check_after_s=10&attempts_max=5``."""

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("dirbus",)

    @property
    def extra(self) -> str | None:
        return "txbus-dirbus"

    def missing(self) -> str | None:
        return None

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return CAPABILITIES

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        from dirbus.backend import DirBackend

        unknown = sorted(set(url.options) - {"check_after_s", "attempts_max"})
        if unknown:
            raise SettingsError(f"dirbus:// has no option {unknown[0]!r}; there are check_after_s, attempts_max")
        try:
            check_after_s = float(url.options.get("check_after_s", "10"))
            attempts_max = int(url.options.get("attempts_max", "5"))
        except ValueError as exc:
            raise SettingsError(f"an option of {url.scheme}:// is no number: {exc}") from exc
        return DirBackend(url.location, check_after_s, attempts_max, ports)


plugin: Final[BackendPlugin] = DirbusPlugin()
