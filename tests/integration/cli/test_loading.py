"""APP: a bus by name, and what is said of a name that leads to none."""

from __future__ import annotations

import pytest

from tests.integration.cli.conftest import App, Invoke
from txbus.cli._loading import load_bus
from txbus.errors import ConfigurationError

MORE = """
def make():
    return bus

def make_with(url):
    return bus

def make_nothing():
    return {"url": "postgresql://ann:secret@host/db"}

def make_failing():
    raise LookupError("no such secret store")

class Holder:
    inner = bus

url = "postgresql://ann:secret@host/db"
"""


@pytest.fixture
def shop(app: App) -> App:
    app.write((app.folder / f"{app.module}.py").read_text() + MORE)
    return app


@pytest.mark.parametrize("attribute", ["bus", "make", "Holder.inner"])
def test_a_bus_a_callable_and_a_dotted_attribute_are_taken(shop: App, attribute: str) -> None:
    """APP names a bus, what a callable returns, or an attribute of an attribute."""
    assert load_bus(f"{shop.module}:{attribute}").service == "shop"


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("buss", "has no attribute 'buss'; the nearest name there is 'bus'"),
        ("Holder.iner", "has no attribute 'iner'; the nearest name there is 'inner'"),
        ("url", "an object of type str, not a Bus"),
        ("placed", "txbus._message.Topic, not a Bus"),
        ("Placed", "the class 'Placed', not a Bus"),
        ("pydantic", "the module 'pydantic', not a Bus"),
        ("make_with", "the function 'make_with' that needs url"),
        ("make_nothing", "returned an object of type dict, not a Bus"),
        ("make_failing", "LookupError: no such secret store"),
    ],
)
def test_what_is_no_bus_is_named_with_its_kind(shop: App, attribute: str, said: str) -> None:
    """The message says what was found, and never shows its value, which may hold a password."""
    with pytest.raises(ConfigurationError) as raised:
        load_bus(f"{shop.module}:{attribute}")
    assert said in str(raised.value)
    assert "ann:secret" not in str(raised.value)


def test_the_buses_of_the_module_are_offered(shop: App) -> None:
    """Whoever names a wrong attribute sees which would do."""
    with pytest.raises(ConfigurationError, match=f"the module has {shop.module}:bus"):
        load_bus(f"{shop.module}:effects")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shop", "must be 'module.path:attribute', for example 'shop:bus'"),
        ("shop/app.py", "for example 'shop.app:bus'"),
        ("shop/app.py:bus", "names a file; name its module: 'shop.app:bus'"),
        (":bus", "must be 'module.path:attribute'"),
        ("shop:", "must be 'module.path:attribute'"),
        ("", "for example 'shop.app:bus'"),
    ],
)
def test_a_name_of_another_form_is_corrected(app: App, name: str, said: str) -> None:
    """The right form is shown, made out of what was given."""
    with pytest.raises(ConfigurationError) as raised:
        load_bus(name)
    assert said in str(raised.value)


def test_a_missing_module_is_told_from_a_missing_import(app: App) -> None:
    """A module that is not there and a module that imports what is not there are two errors."""
    (app.folder / "breaks.py").write_text("import surely_not_installed\n")
    with pytest.raises(ConfigurationError, match=f"no module '{app.module}x'.*nearest there is '{app.module}'"):
        load_bus(f"{app.module}x:bus")
    with pytest.raises(ConfigurationError, match=r"'breaks' imports 'surely_not_installed'.*breaks\.py:1"):
        load_bus("breaks:bus")


def test_a_missing_module_in_a_package_names_its_neighbour(app: App) -> None:
    """The nearest module is looked for where the name points to."""
    package = app.folder / f"package_{app.module}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "app.py").write_text("")
    with pytest.raises(ConfigurationError, match=rf"nearest there is '{package.name}\.app'"):
        load_bus(f"{package.name}.appp:bus")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0\n", "ZeroDivisionError.*:1"),
        ("def (:\n", "SyntaxError.*:1"),
        ("import txbus\nbus = txbus.Bus('nowhere', service='x')\n", "no scheme.*:2"),
    ],
)
def test_a_module_that_fails_says_where(app: App, source: str, said: str) -> None:
    """An error while importing shows itself, the file and the line."""
    app.write(source)
    with pytest.raises(ConfigurationError, match=said):
        load_bus(app.name)


def test_the_current_folder_is_searched_by_the_script(app: App, script: Invoke) -> None:
    """The installed script finds a module beside the user, and exits with 2 if it does not."""
    assert script("schema", "print", app.name).code == 0
    done = script("schema", "print", f"{app.module}:nothing")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("txbus: ConfigurationError: module")
    assert "Traceback" not in done.err
