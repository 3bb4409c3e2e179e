"""What a declaration refuses, and the consumer groups that it makes."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.shopfloor import Order, orders
from txbus import Bus, ConfigurationError
from txbus._halflog.relay import relay_group
from txbus.testing import memory_url

names = st.text(string.ascii_lowercase + ".-_", min_size=1, max_size=6)


def handle(order: Order) -> None: ...


def group(service: str, scope: str) -> str | None:
    """The consumer group of a handler so declared; None if that is refused."""
    try:
        bus = Bus(memory_url(), service=service)
        bus.on(orders, scope=scope, database=None)(handle)
    except ConfigurationError:
        return None
    (declared,) = bus.handlers
    return declared.group(service)


def test_a_scope_with_a_dot_is_refused_with_what_to_use() -> None:
    """The message names the scope, why, and a scope that is taken."""
    bus = Bus(memory_url(), service="shop")
    with pytest.raises(ConfigurationError, match=r"scope='mail\.daily'.*'<service>\.<scope>'.*'mail-daily'") as raised:
        bus.on(orders, scope="mail.daily", database=None)(handle)
    assert "handle" in str(raised.value) and bus.handlers == ()
    bus.on(orders, scope="mail-daily", database=None)(handle)


@given(names, names, names, names)
@example("a", "b.c", "a.b", "c")
@example("a.b", "c", "a", "b.c")
def test_no_two_scopes_of_any_services_share_a_group(service: str, scope: str, other: str, other_scope: str) -> None:
    """A shared group would share its partitions: each of the two handlers would miss what the other got."""
    one, two = group(service, scope), group(other, other_scope)
    if one is not None and (service, scope) != (other, other_scope):
        assert one != two


@given(names, st.sampled_from(["txbus.relay", "txbus.relay.a", "txbus.relays", "txbus"]), names)
@example("shop", "txbus.relay", "shop")
def test_no_handler_reads_in_the_group_of_relays(relays_of: str, service: str, scope: str) -> None:
    """Names that begin like txbus's own are no services."""
    assert group(service, scope) != relay_group(relays_of)


def test_a_service_with_a_name_of_txbus_is_refused() -> None:
    """The message names it; a service called just like the project is fine."""
    with pytest.raises(ConfigurationError, match=r"service='txbus\.relay'.*'txbus\.'"):
        Bus(memory_url(), service="txbus.relay")
    assert Bus(memory_url(), service="txbus").service == "txbus"
