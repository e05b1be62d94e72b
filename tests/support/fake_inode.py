"""An inode that is nothing but a change in pieces."""

from __future__ import annotations

from kerneld.fs.changes import Pieces


class FakeInode:
    """An inode whose change takes so many pieces; it notes each in a list that several may share."""

    def __init__(self, name: str, pieces: int, done: list[str], mms: tuple[object, ...] = ()) -> None:
        self.name, self.pieces, self.done = name, pieces, done
        self.mapping = self
        self.i_mmap = dict(enumerate(mms))
        self.is_closed = False

    def has_other_size(self) -> bool:
        return self.pieces > 0

    def begin_change(self) -> Pieces:
        try:
            for _ in range(self.pieces):
                self.done.append(self.name)
                yield
        finally:
            self.is_closed = True
