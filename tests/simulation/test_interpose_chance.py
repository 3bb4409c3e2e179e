"""Randomness within a simulated process is the process's own: the same in every run of the same seed."""

from __future__ import annotations

import os
import random
import secrets
import socket
import uuid
from collections.abc import Callable, Iterator
from os import urandom
from random import randint
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, Field

from tests.simulation.interpose_runs import result, run
from txbus_sim import _interpose


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Once for all: putting them in place looks at every object there is."""
    with _interpose.installed():
        yield


class Order(BaseModel):
    """The factory is held by a validator written in Rust, which nobody can reach into."""

    id: uuid.UUID = Field(default_factory=uuid4)


DRAWS: list[Callable[[], Any]] = [
    random.random,
    lambda: random.getrandbits(64),
    lambda: randint(0, 10**9),
    lambda: random.choice(range(10**9)),
    lambda: random.sample(range(10**9), 3),
    lambda: random.gauss(0, 1),
    lambda: random.Random().random(),
    lambda: random.SystemRandom().random(),
    lambda: random.SystemRandom().getrandbits(64),
    lambda: os.urandom(8),
    lambda: urandom(8),
    lambda: os.getrandom(8),
    lambda: secrets.token_hex(),
    lambda: secrets.token_bytes(8),
    lambda: secrets.randbelow(10**9),
    lambda: uuid.uuid4(),
    lambda: uuid4(),
    lambda: uuid.uuid1(),
    lambda: Order().id,
]


@pytest.mark.parametrize("number", range(len(DRAWS)))
def test_draws_follow_from_the_seed(number: int) -> None:
    """Equal for equal seeds, different for different ones, for the next draw, and outside."""
    found = [result(lambda: (DRAWS[number](), DRAWS[number]()), seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert found[0][0] != found[0][1]
    assert DRAWS[number]() not in found[0]


def test_processes_draw_from_their_own() -> None:
    """Two processes, and two incarnations of one, draw differently; a draw of one moves no other's."""
    drawn: list[tuple[int, float]] = []

    def main() -> None:
        drawn.append((os.getpid(), random.random()))

    run(a=main, b=main)
    first, second = drawn
    assert first != second
    drawn.clear()
    run(a=lambda: [random.random() for _ in range(9)], b=main)
    assert drawn == [second]


def test_seeding_is_the_process_s_own() -> None:
    """`random.seed(n)` gives the numbers it always gives, and touches nobody else's."""
    expected = random.Random(42).random()

    def main() -> float:
        random.seed(42)
        return random.random()

    random.seed(7)
    untouched = random.Random(7).random()
    assert result(main) == expected
    assert random.random() == untouched


def test_state_can_be_saved_and_put_back() -> None:
    """`getstate` and `setstate` are the process's generator's."""

    def main() -> bool:
        state = random.getstate()
        first = random.random()
        random.setstate(state)
        return first == random.random()

    assert result(main)


def test_a_seeded_generator_is_what_it_always_is() -> None:
    """A seed given explicitly is not replaced."""
    assert result(lambda: random.Random(5).random()) == random.Random(5).random()


def test_who_a_process_is() -> None:
    """Its own process id, machine and network address, the same in every run."""
    pids: list[int] = []
    run(a=lambda: pids.append(os.getpid()), b=lambda: pids.append(os.getpid()))
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert result(socket.gethostname) == "main"
    assert result(uuid.getnode) == result(uuid.getnode) != uuid.getnode()
    assert result(os.getppid) == 1
