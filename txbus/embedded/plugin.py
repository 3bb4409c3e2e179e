"""The entry point of the embedded broker; importing it loads no SQLite."""

from __future__ import annotations

from typing import Final

from txbus.embedded.capabilities import CAPABILITIES
from txbus.spi import Backend, BackendPlugin, BackendURL, Capabilities, Ports, TopicKind

__all__ = ["EmbeddedPlugin", "plugin"]


class EmbeddedPlugin:
    """Makes backends for ``embedded:///path`` and ``memory://name``. Stateless, thread-safe."""

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("embedded", "memory")

    @property
    def extra(self) -> str | None:
        return None

    def missing(self) -> str | None:
        return None

    def capabilities(self, kind: TopicKind = TopicKind.PLAIN) -> Capabilities:
        return CAPABILITIES

    def create(self, url: BackendURL, ports: Ports) -> Backend:
        """A backend for a URL. No I/O. `SettingsError` for an unknown option or an unusable value."""
        from txbus.embedded.backend import EmbeddedBackend
        from txbus.embedded.options import read_options

        return EmbeddedBackend(read_options(url), ports)


plugin: Final[BackendPlugin] = EmbeddedPlugin()
