"""What the application hands over to be sent, noted where it does: the code under test is not asked later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from txbus import Bus, Topic, TransactionScope
from txbus_sim._interpose._patches import Patches
from txbus_sim._world import Process, current_process
from txbus_sim.history import Intended

__all__ = ["patch_intents"]


def patch_intents(patches: Patches) -> None:
    """Have ``tx.send`` (of own and attached local transactions, and by way of them `Delivery.send`) and
    `Bus.send` add an `Intended` to the history. `Bus.send_many` and broker transactions do not: nothing
    is asked of their messages that needs one."""
    owner = next(kind for kind in TransactionScope.__mro__ if "send" in vars(kind))
    patches.method(owner, "send", _send)
    patches.method(Bus, "send", _send_now)


def _send(original: Callable[..., str], scope: Any, topic: Topic[Any], payload: Any, **options: Any) -> str:
    message_id = original(scope, topic, payload, **options)
    process = _living()
    if process is not None:
        _note(process, scope.database, scope.id, scope.attempt, topic, payload, message_id, options)
    return message_id


def _send_now(original: Callable[..., Any], bus: Bus, topic: Topic[Any], payload: Any, **options: Any) -> Any:
    process = _living()
    if process is not None:
        # It may be stored before the call returns, so its id is made here, by what the bus would ask.
        options["message_id"] = options.get("message_id") or bus.ports.entropy.unique_id()
        _note(process, "", "", 0, topic, payload, options["message_id"], options)
    return original(bus, topic, payload, **options)


def _living() -> Process | None:
    process = current_process()
    return process if process is not None and process.alive and not process.world.closed else None


def _note(
    process: Process,
    database: str,
    tx_id: str,
    attempt: int,
    topic: Topic[Any],
    payload: Any,
    message_id: str,
    options: dict[str, Any],
) -> None:
    key = options.get("key")
    if key is None and topic.key is not None:
        key = topic.key(payload)
    world = process.world
    world.history.add(
        Intended(world.now_ns, process.key, database, tx_id, topic.name, message_id, key, attempt),
    )
