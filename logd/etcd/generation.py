"""The generation of the data, as far as this process knows it."""

import threading


class Generation:
    """Never goes back. Used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0

    def advance_to(self, value: int) -> None:
        """Note what etcd has, or had: a lower one changes nothing."""
        with self._lock:
            self.value = max(self.value, value)
