"""Signals as events for a loop that waits on descriptors.

The handlers do nothing; Python writes the number of each signal to a socket (signal.set_wakeup_fd). So a signal never
interrupts the supervisor in the middle of something. Does not know what a signal means.
"""

import contextlib
import signal
import socket
from collections.abc import Collection


class SignalQueue:
    """The signals that arrived and were not received yet, in order. Readable when there are any."""

    def __init__(self, numbers: Collection[signal.Signals]) -> None:
        """Queue these signals from now on, those included that arrived while they were blocked before an upgrade."""
        self._numbers = numbers
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._receiver.fileno()

    def receive(self) -> list[signal.Signals]:
        """Remove all signals from the queue. Does not wait."""
        with contextlib.suppress(BlockingIOError):
            return [signal.Signals(number) for number in self._receiver.recv(4096)]
        return []

    def block(self) -> None:
        """Let the kernel keep further signals, also for the program that replaces this one by exec."""
        signal.pthread_sigmask(signal.SIG_BLOCK, self._numbers)
