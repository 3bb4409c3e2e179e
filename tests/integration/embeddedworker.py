"""What the other processes do in the tests: one command each, told by a line of output at a time."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable

from txbus._system import system_ports
from txbus.embedded.plugin import plugin
from txbus.errors import BackendError, BackendUnavailable, Fenced, NotOpen
from txbus.spi import Backend, BackendURL, BrokerTransactions, Committed, Envelope, Subscription, TopicSpec


def opened(path: str, **options: str) -> Backend:
    backend = plugin.create(BackendURL("embedded", path, options), system_ports())
    backend.open()
    return backend


def say(text: str) -> None:
    print(text, flush=True)


def listen() -> str:
    return sys.stdin.readline().strip()


def one(name: str) -> Envelope:
    return Envelope("t", name.encode(), key=name, headers={"ce_id": name, "ce_source": "w"})


def send(path: str, name: str, count: str) -> None:
    """Open together with others, make the topic, send; say each that was acknowledged."""
    backend = opened(path)
    backend.admin().create([TopicSpec("t", 4, retention_s=None)])
    sender = backend.sender("w")
    for index in range(int(count)):
        sender.send([one(f"{name}-{index}-a"), one(f"{name}-{index}-b")], 30.0)
        sender.append(one(f"{name}-{index}-c"), index % 4).result(30.0)
        say(f"{name}-{index}")
    backend.close()


def zombie(path: str, lease_s: str) -> None:
    """Receive, wait for a word (being stopped meanwhile), then try everything a member may do."""
    backend = opened(path)
    receiver = backend.receiver(Subscription("g", ("t",), lease_s=float(lease_s)))
    batch = receiver.receive(10, 30.0)
    while not batch.received:
        batch = receiver.receive(10, 30.0)
    say(f"received {len(batch.received)}")
    listen()
    where = batch.received[0].position.where
    step = backend.broker_transactions("zombie", 60.0).begin()
    step.send(one("from-the-grave"))
    step.positions("g", batch.membership, {where: Committed(1)})
    attempts: dict[str, Callable[[], object]] = {
        "ack": lambda: receiver.ack(batch.received),
        "redeliver": lambda: receiver.redeliver(batch.received[0], 0.0),
        "commit": step.commit,
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            say(f"{name} done")
        except Fenced:
            say(f"{name} fenced")
    say(f"lost {len(receiver.receive(10, 5.0).lost)}")
    backend.close()


def full(path: str, limit: str) -> None:
    """Send until the file may not grow, then let it grow again; say what was acknowledged."""
    backend = opened(path)
    backend.admin().create([TopicSpec("t", 1, retention_s=None)])
    sender = backend.sender("w")
    receiver = backend.receiver(Subscription("g", ("t",), lease_s=60.0))
    receiver.receive(1, 0.0)
    step = backend.broker_transactions("id", 60.0)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), hard))
    sent = 0
    try:
        while sent < 5000:
            sender.send([Envelope("t", b"%d" % sent + b"x" * 2000)], 5.0)
            sent += 1
    except BackendUnavailable as exc:
        say(f"full: {exc}")
    pending = sender.append(Envelope("t", b"append" + b"x" * 9000), 0)
    attempts: list[Callable[[], object]] = [lambda: pending.result(5.0), lambda: commit(step, b"y" * 9000)]
    for attempt in attempts:
        try:
            attempt()
            say("not refused")
        except BackendError as exc:
            say(f"{type(exc).__name__}: {exc}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    sender.send([Envelope("t", b"%d" % sent)], 5.0)
    commit(step, b"%d" % (sent + 1))
    say(f"sent {sent + 2}")
    backend.close()


def commit(owner: BrokerTransactions, payload: bytes) -> None:
    step = owner.begin()
    step.send(Envelope("t", payload))
    step.commit()


def fork(path: str) -> None:
    """Use a backend in a forked child, then one of the child's own, then the parent's again."""
    backend = opened(path)
    backend.admin().create([TopicSpec("t", 1, retention_s=None)])
    sender = backend.sender("w")
    sender.append(one("parent-1"), 0).result(5.0)
    receiver = backend.receiver(Subscription("g", ("t",)))
    receiver.receive(1, 5.0)
    child = os.fork()
    if child == 0:
        calls: list[Callable[[], object]] = [
            lambda: sender.send([one("never")], 5.0),
            lambda: receiver.receive(1, 0.0),
            backend.admin,
        ]
        for call in calls:
            try:
                call()
                say("child: not refused")
            except NotOpen as exc:
                say(f"child: {exc}")
        backend.close()
        own = opened(path)
        own.sender("w").send([one("child")], 5.0)
        own.close()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    sender.send([one("parent-2")], 5.0)
    receiver.receive(1, 0.0)
    backend.close()
    say("parent: done")


COMMANDS: dict[str, Callable[..., None]] = {"send": send, "zombie": zombie, "full": full, "fork": fork}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
