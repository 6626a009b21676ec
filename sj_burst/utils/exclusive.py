"""One thread at a time: torch.fx patches ``nn.Module`` and functions of torch while it traces."""

import threading

__all__ = ["CONVERTING", "Exclusive"]


class Exclusive:
    """A lock that a thread may hold over several calls, and that a dead thread does not keep.

    As a context manager it nests. Between :meth:`begin` and :meth:`end`, which may be in different
    functions, a conversion that broke off in between does no harm: the next one of the same thread
    begins anew.

    Example:
        >>> lock = Exclusive()
        >>> with lock, lock:
        ...     lock.held
        True
        >>> lock.held
        False
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._owner: threading.Thread | None = None
        self._depth = 0

    @property
    def held(self) -> bool:
        """Whether this thread holds the lock."""
        return self._owner is threading.current_thread()

    def _acquire(self) -> None:
        me = threading.current_thread()
        with self._changed:
            while self._owner not in (None, me) and self._owner.is_alive():
                self._changed.wait(0.5)
            if self._owner is not me:
                self._owner, self._depth = me, 0

    def begin(self) -> None:
        """Wait for the lock, and hold it until :meth:`end`."""
        self._acquire()
        self._depth = 1

    def end(self) -> None:
        """Let another thread in."""
        with self._changed:
            self._owner, self._depth = None, 0
            self._changed.notify_all()

    def __enter__(self) -> "Exclusive":
        self._acquire()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.end()


CONVERTING = Exclusive()
