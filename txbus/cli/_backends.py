"""``txbus backends``: which brokers a bus can use, and what each promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import typer

from txbus import _registry
from txbus._capability import Capability, TopicKind
from txbus._checks import HALF_LOG_NEEDS, derives_half_messages
from txbus.cli._output import JsonOption, explained, note, print_json, print_table
from txbus.spi import BackendPlugin, Capabilities

__all__ = ["register"]

_BY_THE_CORE = {
    Capability.TAG_FILTER: "filtered by the consumer after receiving",
    Capability.ATTEMPTS_COUNTED: "counted in the handler's database",
}


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One backend. ``derived`` and ``conditional`` map a capability to how it comes about; ``kinds``
    has the capabilities that a kind of topic has less (``-``) or more (``+``) than a plain one."""

    name: str
    schemes: tuple[str, ...]
    installed: bool
    install: str | None
    native: tuple[str, ...]
    derived: Mapping[str, str]
    conditional: Mapping[str, str]
    kinds: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, float | None]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=explained(backends.__doc__))(backends)


def backends(as_json: JsonOption = False) -> None:
    """List the backends: URL schemes, whether the client is installed, promises and limits.

    A promise is native (the broker keeps it), derived (txbus makes it out of others), or
    conditional (with other settings or for other kinds of topics). No client library is imported.

    \b
    Examples:
      txbus backends
      txbus backends --json
    """
    rows = [_row(name, plugin) for name, plugin in sorted(_registry.backends().items())]
    if as_json:
        print_json({"backends": rows})
        return
    print_table(
        "Backends",
        rows,
        {
            "name": lambda r: r.name,
            "URL": lambda r: [f"{scheme}://" for scheme in r.schemes],
            "installed": lambda r: "yes" if r.installed else f"no: {r.install}",
            "limits": lambda r: [f"{k} {v:,.0f}" if v is not None else f"{k} none" for k, v in r.limits.items()],
        },
    )
    for row in rows:
        promises = [(name, "native", "") for name in row.native]
        promises += [(name, "derived", how) for name, how in row.derived.items()]
        promises += [(name, "conditional", how) for name, how in row.conditional.items()]
        promises += [(f"{kind} topics", "differ", ", ".join(names)) for kind, names in row.kinds.items()]
        print_table(
            f"What {row.name} promises",
            promises,
            {"capability": lambda p: p[0], "support": lambda p: p[1], "how": lambda p: p[2]},
        )
    if any(plugin.group == _registry.BACKENDS for plugin in _registry.broken()):
        note("Some backends could not be loaded: txbus doctor says why.")


def _row(name: str, plugin: BackendPlugin) -> BackendRow:
    missing = plugin.missing()
    plain = plugin.capabilities()
    return BackendRow(
        name=name,
        schemes=tuple(plugin.schemes),
        installed=missing is None,
        install=None if missing is None else _registry.install_command(plugin.extra or missing),
        native=tuple(sorted(c.value for c in plain.native)),
        derived=_derived(plain),
        conditional={c.value: how for c, how in plain.conditional.items()},
        kinds={kind.value: names for kind in TopicKind if (names := _difference(plain, plugin.capabilities(kind)))},
        limits={
            "payload_bytes_max": plain.limits.payload_bytes_max,
            "headers_bytes_max": plain.limits.headers_bytes_max,
            "delay_s_max": plain.limits.delay_s_max,
            "partitions_max": plain.limits.partitions_max,
        },
    )


def _derived(plain: Capabilities) -> dict[str, str]:
    derived = {}
    if Capability.HALF_MESSAGE not in plain and derives_half_messages(plain.native):
        needs = ", ".join(c.value for c in HALF_LOG_NEEDS)
        derived[Capability.HALF_MESSAGE.value] = f"by the half log, from {needs}"
    for capability, how in _BY_THE_CORE.items():
        if capability not in plain:
            derived[capability.value] = how
    return derived


def _difference(plain: Capabilities, other: Capabilities) -> tuple[str, ...]:
    less = sorted(f"-{c.value}" for c in plain.native - other.native)
    return (*less, *sorted(f"+{c.value}" for c in other.native - plain.native))
