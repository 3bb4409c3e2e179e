"""The options of an embedded URL, checked when the backend is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from txbus.errors import SettingsError
from txbus.spi import BackendURL

__all__ = ["Options", "read_options"]

_NAMES = ("sync", "wake_poll_s", "busy_timeout_s", "append_flush_s", "network_fs")


@dataclass(frozen=True, slots=True)
class Options:
    """Where the bus lives and how it is used.

    ``path`` is None for a bus in memory, which ``name`` tells from others of the process.
    ``sync_full``: a send is on the disk when it returns, else with the operating system only.
    ``wake_poll_s``: how often a waiting receiver looks for what other processes wrote.
    ``busy_timeout_s``: how long a write waits for other writers before `BackendUnavailable`.
    ``append_flush_s``: after this long an append that nobody waits for is written.
    """

    scheme: str
    name: str
    path: str | None
    sync_full: bool = True
    wake_poll_s: float = 0.005
    busy_timeout_s: float = 5.0
    append_flush_s: float = 0.01
    network_fs_allowed: bool = False


def read_options(url: BackendURL) -> Options:
    """Options of a URL; `SettingsError` names what is unknown or out of range."""
    location = unquote(url.location)
    if not location:
        example = "memory://tests" if url.scheme == "memory" else "embedded:///var/lib/shop/bus.db"
        raise SettingsError(f"{url.scheme}:// names no bus; write for example {example}")
    if "\0" in location or (url.scheme == "embedded" and location.endswith("/")):
        raise SettingsError(f"{url.scheme}://{location!r} is not the name of a file")
    for name in url.options:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_NAMES)}"
            raise SettingsError(f"{url.scheme}:// has no option {name!r}; {hint}")
    return Options(
        scheme=url.scheme,
        name=location,
        path=location if url.scheme == "embedded" else None,
        sync_full=_choice(url.options, "sync", ("full", "normal")) == "full",
        wake_poll_s=_seconds(url.options, "wake_poll_s", 0.005, 0.0005, 1.0),
        busy_timeout_s=_seconds(url.options, "busy_timeout_s", 5.0, 0.01, 300.0),
        append_flush_s=_seconds(url.options, "append_flush_s", 0.01, 0.001, 1.0),
        network_fs_allowed=_choice(url.options, "network_fs", ("refuse", "allow")) == "allow",
    )


def _choice(options: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = options.get(name, allowed[0])
    if value not in allowed:
        raise SettingsError(f"option {name}={value!r}: allowed are {' and '.join(allowed)}")
    return value


def _seconds(options: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError as exc:
        raise SettingsError(f"option {name}={text!r} is not a number of seconds") from exc
    if not (math.isfinite(value) and low <= value <= high):
        raise SettingsError(f"option {name}={text!r} must lie between {low} and {high} seconds")
    return value
