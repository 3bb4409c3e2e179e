"""Settings: their sources, their ranges, and the URL they may stand in."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from collections.abc import Mapping

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from txbus.errors import SettingsError
from txbus.settings import Settings, SettingsArguments, describe, mask, nearest, parse_url


def load(
    arguments: Mapping[str, object] | None = None,
    query: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    return Settings.load(arguments or {}, query or {}, environ or {})[0]


def test_nothing_given_means_the_defaults() -> None:
    """Without any source every setting has its documented default."""
    assert load() == Settings()


def test_argument_beats_url_beats_environment_beats_default() -> None:
    """The nearer source wins, setting by setting."""
    environ = {"TXBUS_LEASE_S": "3", "TXBUS_POLL_S": "0.3", "TXBUS_WORKERS": "3"}
    settings = load({"lease_s": 1}, {"lease_s": "2", "poll_s": "0.2"}, environ)
    assert (settings.lease_s, settings.poll_s, settings.workers) == (1.0, 0.2, 3)
    assert settings.check_after_s == Settings().check_after_s


def test_text_becomes_the_setting_s_type() -> None:
    """A URL and an environment are text; numbers, choices and truth values are read from it."""
    settings = load({}, {"create_topics": "false"}, {"TXBUS_RELAY": "outside", "TXBUS_INBOX_HORIZON_S": "9e5"})
    assert (settings.create_topics, settings.relay, settings.inbox_horizon_s) == (False, "outside", 9e5)


def test_query_options_that_are_no_settings_go_to_the_backend() -> None:
    """Load returns what it does not know of the query, and nothing else."""
    _, rest = Settings.load({}, {"synchronous": "full", "lease_s": "4"}, {})
    assert rest == {"synchronous": "full"}


def test_unknown_argument_is_named_with_the_nearest() -> None:
    """A misspelt argument is refused with the name that was probably meant."""
    with pytest.raises(SettingsError, match="'leas_s'.*'lease_s'"):
        load({"leas_s": 1})


def test_unknown_variable_is_named_with_the_nearest() -> None:
    """A misspelt TXBUS_ variable is refused with the name that was probably meant."""
    with pytest.raises(SettingsError, match="TXBUS_CHECK_AFTR_S.*TXBUS_CHECK_AFTER_S"):
        load(environ={"TXBUS_CHECK_AFTR_S": "1"})


@pytest.mark.parametrize(
    "name", ["TXBUS_TEST_KILLS", "TXBUS_REQUIRE_SERVERS", "TXBUS_REQUIRE_BROWSER", "TXBUS_DEMO_SEED", "OTHER_LEASE_S"]
)
def test_reserved_and_foreign_variables_are_no_settings(name: str) -> None:
    """Variables of the tests, of the demo and of others are left alone."""
    assert load(environ={name: "whatever"}) == Settings()


def test_an_empty_variable_counts_as_not_set() -> None:
    """`TXBUS_LEASE_S=` in a unit file means: no word on it."""
    assert load(environ={"TXBUS_LEASE_S": ""}) == Settings()


def test_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """True stands for the process's own environment, False for none."""
    monkeypatch.setenv("TXBUS_LEASE_S", "7")
    assert Settings.load({}, {}, True)[0].lease_s == 7.0
    assert Settings.load({}, {}, False)[0] == Settings()


@pytest.mark.parametrize(
    ("arguments", "query", "environ", "text"),
    [
        ({"lease_s": 0}, {}, {}, "argument lease_s=0 is refused: it must be seconds, more than 0"),
        (
            {},
            {"workers": "many"},
            {},
            "URL option workers='many' is refused: it must be a whole number, at least 1",
        ),
        ({}, {}, {"TXBUS_POLL_S": "nan"}, "environment variable TXBUS_POLL_S='nan' is refused"),
        ({"relay": "beside"}, {}, {}, "argument relay='beside' is refused: it must be 'inside' or 'outside'"),
        (
            {},
            {"create_topics": "perhaps"},
            {},
            "create_topics='perhaps' is refused: it must be true or false",
        ),
        ({"inbox_horizon_s": -1}, {}, {}, "inbox_horizon_s=-1 is refused: it must be seconds, more than 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_source_and_range(
    arguments: Mapping[str, object], query: Mapping[str, str], environ: Mapping[str, str], text: str
) -> None:
    """The message shows where the value came from, the value, and what would be accepted."""
    with pytest.raises(SettingsError, match=re.escape(text)):
        load(arguments, query, environ)


def test_every_refused_value_is_listed_at_once() -> None:
    """Two mistakes need one run to be found."""
    with pytest.raises(SettingsError, match="lease_s=-1.*workers=0"):
        load({"lease_s": -1, "workers": 0})


def test_settings_cannot_be_changed() -> None:
    """One Settings is shared by the threads of a bus."""
    with pytest.raises(pydantic.ValidationError):
        Settings().lease_s = 3.0  # type: ignore[misc]  # the wrong use is what is tested


def test_each_setting_is_documented_with_a_default_within_its_range() -> None:
    """Every setting has a sentence, a variable and a range, and its default is inside of the range."""
    for setting in describe():
        assert setting.description.endswith("."), setting.name
        assert setting.variable == f"TXBUS_{setting.name.upper()}"
        assert setting.range
        if setting.default is not None:
            assert getattr(load({setting.name: setting.default}), setting.name) == setting.default


def test_keyword_arguments_for_mypy_are_the_settings() -> None:
    """SettingsArguments has the names and types of Settings, none more and none less."""
    hints = typing.get_type_hints(SettingsArguments)
    fields = {name: field.annotation for name, field in Settings.model_fields.items()}
    fields["inbox_horizon_s"] = float | None  # its range stands within the annotation
    assert hints == fields


SCRIPT = """
import sys
from txbus.settings import Settings
Settings.load({"lease_s": 4}, {"poll_s": "1"})
assert "pydantic_settings" not in sys.modules, "loaded without a variable"
Settings.load({}, {}, {"TXBUS_LEASE_S": "4"})
assert "pydantic_settings" in sys.modules, "not loaded with one"
"""


def test_pydantic_settings_is_imported_only_for_a_variable() -> None:
    """In a fresh interpreter arguments and URL do not load pydantic-settings; a variable does."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


WITHOUT = """
import sys
sys.modules["pydantic_settings"] = None  # as if it were not installed
from txbus.errors import SettingsError
from txbus.settings import Settings
Settings.load({}, {}, {})
try:
    Settings.load({}, {}, {"TXBUS_LEASE_S": "4"})
except SettingsError as error:
    assert 'pip install "txbus[settings]"' in str(error) and "TXBUS_LEASE_S" in str(error), error
else:
    raise AssertionError("not refused")
"""


def test_a_variable_without_pydantic_settings_names_what_to_install() -> None:
    """The base install works without the extra, and says what to install when it is needed."""
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=60)


def test_a_url_is_scheme_location_and_query() -> None:
    """The location is kept as written; the query is decoded."""
    url, query = parse_url("embedded:///var/lib/a b.db?lease_s=5&note=a%20b&empty=")
    assert (url.scheme, url.location, dict(url.options)) == ("embedded", "/var/lib/a b.db", {})
    assert query == {"lease_s": "5", "note": "a b", "empty": ""}


@pytest.mark.parametrize("text", ["", "bus.db", "://x", "user:secret@host", "a b://x"])
def test_a_url_without_scheme_is_refused_without_showing_credentials(text: str) -> None:
    """The message has an example, and no password."""
    with pytest.raises(SettingsError, match="embedded:///") as raised:
        parse_url(text)
    assert "secret" not in str(raised.value)


def test_an_option_given_twice_is_refused() -> None:
    """Which of two values would count is not left to chance."""
    with pytest.raises(SettingsError, match="'lease_s' twice"):
        parse_url("memory://x?lease_s=1&lease_s=2")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("embedded:///a@b/c.db", "embedded:///a@b/c.db"),
        ("kafka://ann:pw@host:9092,b:9092/x", "kafka://***@host:9092,b:9092/x"),
        ("kafka://ann:p/w@x@host", "kafka://***@host"),
        ("kafka://host?sasl.password=pw&lease_s=3", "kafka://host?sasl.password=***&lease_s=3"),
        ("ann:pw@host", "***@host"),
        ("memory://shop", "memory://shop"),
    ],
)
def test_mask_hides_users_and_foreign_options(url: str, shown: str) -> None:
    """What may be secret goes; what helps to find a mistake stays."""
    assert mask(url) == shown


_word = st.text(alphabet="abcdefgh0123456789:/@.", min_size=8, max_size=20)


@given(secret=_word.map("secret".__add__), option=st.sampled_from(["password", "token", "sasl.key"]))
def test_no_secret_survives_masking(secret: str, option: str) -> None:
    """Whatever stands as a password, with slashes and at-signs, is not shown; nor by a URL's repr."""
    text = f"kafka://user:{secret}@host:9092?{option}={secret}"
    assert "secret" not in mask(text)
    url, _ = parse_url(text)
    assert "secret" not in repr(url)


def test_nearest_of_nothing_is_empty() -> None:
    """There is no nearest name when none is known."""
    assert nearest("a", []) == ""
    assert nearest("leas", ["poll_s", "lease_s"]) == "lease_s"
