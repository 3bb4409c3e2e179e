"""Finds backends, stores and sub-commands that installed distributions registered.

Discovery is pluggy's: one plugin manager for each entry point group, loaded on first use and kept,
because the installed distributions of a process do not change. A plugin that cannot be loaded is
kept in `broken` and stands in nobody else's way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from txbus._ports import Ports
from txbus._telemetry import Emit
from txbus._version import __version__
from txbus.errors import ConfigurationError
from txbus.settings import nearest
from txbus.spi import Backend, BackendPlugin, BackendURL
from txbus.stores.contract import Database, StorePlugin

__all__ = [
    "BrokenPlugin",
    "adapt_database",
    "backends",
    "broken",
    "commands",
    "create_backend",
    "install_command",
    "stores",
]

BACKENDS, STORES, COMMANDS = "txbus.backends", "txbus.stores", "txbus.commands"
_PLANNED = ("kafka", "rocketmq")


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """An entry point that is registered and cannot be used; ``error`` says why."""

    group: str
    name: str
    value: str
    error: str


@dataclass(frozen=True, slots=True)
class _Group:
    plugins: Mapping[str, Any]
    broken: tuple[BrokenPlugin, ...]


def backends() -> Mapping[str, BackendPlugin]:
    """The registered backends by name. Imports no client library."""
    return _group(BACKENDS).plugins


def stores() -> Mapping[str, StorePlugin]:
    """The registered stores by name."""
    return _group(STORES).plugins


def commands() -> Mapping[str, object]:
    """What other distributions add to the command line: sub-command name to typer application."""
    return _group(COMMANDS).plugins


def broken() -> tuple[BrokenPlugin, ...]:
    """Entry points of any group that could not be loaded or are not what their group asks for."""
    return tuple(plugin for group in (BACKENDS, STORES, COMMANDS) for plugin in _group(group).broken)


def create_backend(url: BackendURL, ports: Ports) -> Backend:
    """A backend for a URL, not opened.

    ConfigurationError for a scheme that nobody registered, or whose client library is missing.
    """
    by_scheme = {scheme: plugin for plugin in backends().values() for scheme in plugin.schemes}
    plugin = by_scheme.get(url.scheme)
    if plugin is None:
        raise ConfigurationError(_unknown_scheme(url.scheme, sorted(by_scheme)))
    library = plugin.missing()
    if library is not None:
        raise ConfigurationError(
            f"{url.scheme}:// needs {library}, which is not installed: {install_command(plugin.extra or library)}"
        )
    return plugin.create(url, ports)


def adapt_database(name: str, candidate: object, ports: Ports, emit: Emit) -> Database:
    """The store's view of what the application gave as a database.

    ConfigurationError if no store recognises it. The candidate is never shown: it may be a URL.
    """
    for plugin in stores().values():
        database = plugin.adapt(name, candidate, ports, emit)
        if database is not None:
            return database
    kind = f"{type(candidate).__module__}.{type(candidate).__qualname__}".removeprefix("builtins.")
    hint = "give sqlalchemy.create_engine(url)" if isinstance(candidate, str) else "give a SQLAlchemy Engine"
    raise ConfigurationError(
        f"databases[{name!r}] is of type {kind}, which no store recognises "
        f"(registered: {', '.join(sorted(stores())) or 'none'}): {hint}{_seen_broken(STORES)}"
    )


def install_command(extra: str) -> str:
    """The command that installs an extra of txbus, or else a distribution of that name."""
    import importlib.metadata  # only on the way to an error or a report

    extras = importlib.metadata.metadata("txbus").get_all("Provides-Extra") or []
    return f'pip install "txbus[{extra}]"' if extra in extras else f"pip install {extra}"


def _unknown_scheme(scheme: str, known: list[str]) -> str:
    text = f"no backend for {scheme}:// is registered"
    if scheme in _PLANNED:
        text += f" ({scheme} is planned and not a part of txbus {__version__})"
    elif known:
        text += f"; the nearest known is {nearest(scheme, known)}://"
    return f"{text}; known: {', '.join(f'{name}://' for name in known) or 'none'}{_seen_broken(BACKENDS)}"


def _seen_broken(group: str) -> str:
    names = [plugin.name for plugin in _group(group).broken]
    return f"; could not be loaded: {', '.join(names)} (`txbus doctor` says why)" if names else ""


@functools.cache
def _group(group: str) -> _Group:
    import importlib.metadata  # costs milliseconds, so not at `import txbus`

    manager = pluggy.PluginManager("txbus")
    values: dict[str, set[str]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        values.setdefault(entry.name, set()).add(entry.value)
    failed: list[BrokenPlugin] = []
    for name in sorted(values):
        value = " and ".join(sorted(values[name]))
        try:
            if len(values[name]) > 1:
                raise ConfigurationError("two distributions register this name; uninstall one")
            manager.load_setuptools_entrypoints(group, name=name)
            _check(group, name, manager.get_plugin(name))
        except Exception as exc:
            # Somebody else's code ran: whatever it raised must not take the others with it.
            failed.append(BrokenPlugin(group, name, value, f"{type(exc).__name__}: {exc}"))
            if manager.has_plugin(name):
                manager.unregister(name=name)
    return _Group(dict(manager.list_name_plugin()), tuple(failed))


_KINDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    BACKENDS: ("txbus.spi.BackendPlugin", lambda plugin: isinstance(plugin, BackendPlugin)),
    STORES: ("txbus.stores.contract.StorePlugin", lambda plugin: isinstance(plugin, StorePlugin)),
    COMMANDS: ("typer.Typer", lambda plugin: hasattr(plugin, "registered_commands")),
}


def _check(group: str, name: str, plugin: object) -> None:
    kind, is_kind = _KINDS[group]
    if not is_kind(plugin):
        raise ConfigurationError(f"{name} is a {type(plugin).__qualname__}, not a {kind}")
