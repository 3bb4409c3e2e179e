"""A process's own randomness for `random`, `os.urandom`, `secrets` and `uuid`; and who it is.

`secrets`, `uuid.uuid4` and `random.SystemRandom` draw through `os.urandom`.
"""

from __future__ import annotations

import os
import random
import socket
import uuid
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent

from txbus_sim._interpose._clocks import wall_ns
from txbus_sim._interpose._patches import Patches
from txbus_sim._world import Process, Strand, current_process

__all__ = ["patch_chance"]

_GENERATOR = "random"
_LAST_UUID1 = "uuid1"
_PARENT_PID = 1
_UUID_EPOCH_100NS = 0x01B21DD213814000
"""Between 1582-10-15 and 1970-01-01, in units of 100 ns (RFC 9562)."""


def patch_chance(patches: Patches) -> None:
    for name in dir(random):
        function = getattr(random, name)
        if getattr(function, "__self__", None) is random._inst:
            patches.function(function, _drawing(name))
    patches.method(random.Random, "seed", _seed)
    patches.function(os.urandom, _urandom)
    patches.function(os.getrandom, _urandom)
    patches.function(os.getpid, _getpid)
    patches.function(os.getppid, _getppid)
    patches.function(socket.gethostname, _gethostname)
    patches.code(uuid.uuid1, _uuid1)
    patches.code(uuid.getnode, _getnode)


def _generator(process: Process) -> random.Random:
    """What the functions of module `random` draw from in this process."""
    found: random.Random | None = process.memory.get(_GENERATOR)
    if found is None:
        found = process.memory[_GENERATOR] = random.Random(process.entropy.getrandbits(64))
    return found


def _drawing(name: str) -> Callable[..., Any]:
    def draw(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        strand = getcurrent()
        if type(strand) is Strand:
            return getattr(_generator(strand.process), name)(*args, **kwargs)
        return original(*args, **kwargs)

    draw.__name__ = draw.__qualname__ = name
    return draw


def _seed(original: Callable[..., None], self: random.Random, a: Any = None, version: int = 2) -> None:
    """``Random()`` and ``seed()`` take their seed from the process, not from the system."""
    process = current_process() if a is None else None
    original(self, a if process is None else process.entropy.getrandbits(256), version)


def _urandom(original: Callable[..., bytes], size: int, *flags: int) -> bytes:
    process = current_process()
    return original(size, *flags) if process is None else process.entropy.randbytes(size)


def _getpid(original: Callable[[], int]) -> int:
    process = current_process()
    return original() if process is None else process.pid


def _getppid(original: Callable[[], int]) -> int:
    return original() if current_process() is None else _PARENT_PID


def _gethostname(original: Callable[[], str]) -> str:
    """Each process has a machine of its own, and keeps it when it is started anew."""
    process = current_process()
    return original() if process is None else process.spec.name


def _getnode(original: Callable[[], int]) -> int:
    process = current_process()
    if process is None:
        return original()
    # A network address of nobody's (the multicast bit is set, RFC 9562), the same in every run.
    return random.Random(process.spec.name).getrandbits(48) | (1 << 40)


def _uuid1(original: Callable[..., uuid.UUID], node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
    strand = getcurrent()
    if type(strand) is not Strand:
        return original(node, clock_seq)
    process = strand.process
    stamp = max(wall_ns(strand) // 100 + _UUID_EPOCH_100NS, process.memory.get(_LAST_UUID1, 0) + 1)
    process.memory[_LAST_UUID1] = stamp
    if clock_seq is None:
        clock_seq = process.entropy.getrandbits(14)
    return uuid.UUID(
        fields=(
            stamp & 0xFFFFFFFF,
            (stamp >> 32) & 0xFFFF,
            (stamp >> 48) & 0x0FFF,
            (clock_seq >> 8) & 0x3F,
            clock_seq & 0xFF,
            uuid.getnode() if node is None else node,
        ),
        version=1,
    )
