"""``txbus doctor``: what is installed, what is missing, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import typer

from txbus import _registry
from txbus._version import __version__
from txbus.cli._output import JsonOption, explained, print_json, print_table
from txbus.errors import SettingsError
from txbus.settings import Settings, describe

__all__ = ["register"]

_PREFIX = "TXBUS_"
_REQUIREMENT = re.compile(
    r"^\s*(?P<name>[A-Za-z0-9._-]+)\s*(\[(?P<extras>[^]]*)\])?\s*(?P<bounds>[^;]*)(;(?P<marker>.*))?$"
)
_EXTRA = re.compile(r"""extra\s*==\s*['"](?P<extra>[^'"]+)['"]""")
_FOR_DEVELOPERS = {"dev"}


@dataclass(frozen=True, slots=True)
class Dependency:
    """A distribution that txbus, or one of its extras, needs; ``version`` None: not installed."""

    name: str
    extra: str | None
    needed: str
    version: str | None
    right: bool


@dataclass(frozen=True, slots=True)
class Extra:
    """An extra of txbus; ``install`` is the command where it is not complete."""

    name: str
    complete: bool
    missing: tuple[str, ...]
    install: str | None


@dataclass(frozen=True, slots=True)
class Variable:
    """An environment variable that begins with TXBUS_. Its value is not shown."""

    name: str
    kind: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that doctor looks at; ``problems`` is what is wrong, a sentence each."""

    python: str
    platform: str
    txbus: str
    dependencies: tuple[Dependency, ...]
    extras: tuple[Extra, ...]
    plugins: Mapping[str, tuple[str, ...]]
    broken: tuple[_registry.BrokenPlugin, ...]
    variables: tuple[Variable, ...]
    problems: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(help=explained(doctor.__doc__))(doctor)


def doctor(as_json: JsonOption = False) -> None:
    """Check this installation: versions, extras, plugins and environment.

    An extra that is not installed is no fault; it is listed with the command that installs it.
    Exit code 1 if something is wrong: a dependency that is missing or too old, a plugin that cannot
    be loaded, a TXBUS_ variable that is unknown or has a value out of range.

    \b
    Examples:
      txbus doctor
      txbus doctor --json
    """
    found = diagnose()
    if as_json:
        print_json(found)
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def diagnose() -> Diagnosis:
    """Look at this interpreter, its distributions and its environment."""
    requirements = importlib.metadata.requires("txbus") or []
    dependencies = tuple(d for text in requirements if (d := _dependency(text)) is not None)
    extras = _extras(dependencies)
    plugins = {
        "backends": tuple(sorted(_registry.backends())),
        "stores": tuple(sorted(_registry.stores())),
        "commands": tuple(sorted(_registry.commands())),
    }
    variables = tuple(_variables(os.environ))
    broken = _registry.broken()
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        txbus=__version__,
        dependencies=dependencies,
        extras=extras,
        plugins=plugins,
        broken=broken,
        variables=variables,
        problems=tuple(_problems(dependencies, broken, plugins["commands"], variables)),
    )


def _dependency(text: str) -> Dependency | None:
    """One line of the distribution's metadata; None for an extra that refers to txbus itself."""
    parsed = _REQUIREMENT.match(text)
    assert parsed is not None, text
    if parsed["name"].lower() == "txbus":
        return None
    wanted = _EXTRA.search(parsed["marker"] or "")
    if wanted is not None and wanted["extra"] == "all":
        return None  # the same once more
    try:
        version = importlib.metadata.version(parsed["name"])
    except importlib.metadata.PackageNotFoundError:
        version = None
    needed = parsed["bounds"].strip()
    right = version is not None and all(_reaches(version, bound) for bound in needed.split(","))
    return Dependency(parsed["name"], wanted["extra"] if wanted else None, needed, version, right)


def _reaches(version: str, bound: str) -> bool:
    """Is a version at or above a lower bound? Bounds of another kind are pip's business."""
    if not bound.strip().startswith(">="):
        return True
    return _numbers(version) >= _numbers(bound.strip()[2:])


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: 2.1.0rc1 gives 2, 1, 0."""
    found = re.match(r"\s*(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def _extras(dependencies: Iterable[Dependency]) -> tuple[Extra, ...]:
    by_name: dict[str, list[Dependency]] = {}
    for dependency in dependencies:
        if dependency.extra is not None and dependency.extra not in _FOR_DEVELOPERS:
            by_name.setdefault(dependency.extra, []).append(dependency)
    rows = []
    for name, needed in sorted(by_name.items()):
        missing = tuple(f"{d.name}{d.needed}" for d in needed if not d.right)
        rows.append(Extra(name, not missing, missing, _registry.install_command(name) if missing else None))
    for backend, plugin in sorted(_registry.backends().items()):
        library = plugin.missing()
        if library is not None and plugin.extra not in by_name:
            command = _registry.install_command(plugin.extra or library)
            rows.append(Extra(f"{backend} (backend)", False, (library,), command))
    return tuple(rows)


def _variables(environ: Mapping[str, str]) -> Iterable[Variable]:
    known = [setting.variable for setting in describe()]
    for name, value in sorted(environ.items()):
        if name.upper().startswith(_PREFIX):
            problem = _refusal(name, value)
            kind = "setting" if name.upper() in known else "unknown" if problem else "no setting of a bus"
            yield Variable(name, kind, problem)


def _refusal(name: str, value: str) -> str | None:
    try:
        Settings.load({}, {}, {name: value})
    except SettingsError as exc:
        return str(exc)
    return None


def _problems(
    dependencies: Iterable[Dependency],
    broken: Iterable[_registry.BrokenPlugin],
    commands: Iterable[str],
    variables: Iterable[Variable],
) -> Iterable[str]:
    from txbus.cli._app import OWN_COMMANDS  # the app imports this module

    for d in dependencies:
        if d.right:
            continue
        if d.version is not None and d.extra not in _FOR_DEVELOPERS:
            yield f"{d.name} {d.version} does not satisfy {d.needed}: pip install --upgrade {d.name}"
        elif d.extra is None:
            yield f"{d.name}{d.needed} is not installed: pip install --upgrade txbus"
    for plugin in broken:
        yield f"plugin {plugin.name!r} of {plugin.group} ({plugin.value}) cannot be used: {plugin.error}"
    for name in commands:
        if name in OWN_COMMANDS:
            yield f"sub-command {name!r} of another package is hidden by txbus {name}"
    yield from (v.problem for v in variables if v.problem is not None)


def _show(found: Diagnosis) -> None:
    versions = [("Python", found.python, sys.executable), ("platform", found.platform, ""), ("txbus", found.txbus, "")]
    versions += [
        (d.name, d.version, f"needs {d.needed}" + (f", extra {d.extra}" if d.extra else ""))
        for d in found.dependencies
        if d.version is not None and d.extra not in _FOR_DEVELOPERS
    ]
    print_table("Versions", versions, {"what": lambda v: v[0], "version": lambda v: v[1], "": lambda v: v[2]})
    print_table(
        "Extras",
        found.extras,
        {
            "extra": lambda e: e.name,
            "installed": lambda e: e.complete,
            "missing": lambda e: e.missing,
            "install with": lambda e: e.install,
        },
    )
    print_table("Plugins", list(found.plugins.items()), {"kind": lambda p: p[0], "names": lambda p: p[1]})
    print_table(
        "Environment", found.variables, {"variable": lambda v: v.name, "is": lambda v: v.kind}, "no TXBUS_ variable"
    )
    print_table("Wrong", found.problems, {"what": lambda text: text}, "nothing")
