"""A bounded queue between threads in which an ordinary sender wakes nobody up.

To wake a sleeping thread costs the sender a system call, and often its core or the interpreter's lock as well: on two
busy cores a quarter of all the time in ``probe.step``. So the receiver looks by itself, often while things come and
less often while none do. Only who waits for an answer wakes it.

There is no lock around the things themselves (a deque's ends are atomic): a fork never inherits one that is held.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, Generic, TypeVar

T = TypeVar("T")

SHORTEST_PAUSE: Final = 0.01  # seconds between looks while things come
LONGEST_PAUSE: Final = 0.1


class Inbox(Generic[T]):
    """Things on their way to one receiving thread, oldest first.

    Args:
        length: How many may wait. Senders that come at the very same moment may pass it by one each.

    >>> inbox = Inbox[str](2)
    >>> inbox.offer("a"), inbox.offer("b"), inbox.offer("c"), len(inbox)
    (True, True, False, 2)
    >>> inbox.take(0.0), inbox.take(0.0), inbox.take(0.0)
    ('a', 'b', None)
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._things: deque[T] = deque()
        self._hurry = threading.Event()
        self._pause = SHORTEST_PAUSE

    def __len__(self) -> int:
        return len(self._things)

    def offer(self, thing: T) -> bool:
        """Leave a thing for the next look; return False, and leave nothing, where there is no room."""
        if len(self._things) >= self._length:
            return False
        self._things.append(thing)
        return True

    def hand_over(self, thing: T, patience: float) -> bool:
        """Leave a thing and wake the receiver.

        Args:
            thing: What is left.
            patience: Seconds to wait for room.

        Returns:
            Whether there was room in that time.
        """
        deadline = time.monotonic() + patience
        while not self.offer(thing):
            self._hurry.set()
            if time.monotonic() >= deadline:
                return False
            time.sleep(SHORTEST_PAUSE)
        self._hurry.set()
        return True

    def take(self, patience: float) -> T | None:
        """Return the oldest thing; wait for one, ``patience`` seconds at most. None where none came."""
        deadline = time.monotonic() + patience
        while True:
            self._hurry.clear()  # before the look: who sets it now has left something that is seen
            if self._things:
                self._pause = SHORTEST_PAUSE
                return self._things.popleft()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._hurry.wait(min(left, self._pause))
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
