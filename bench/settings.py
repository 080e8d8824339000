"""What the command line chose, as the parts need it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Options of a run."""

    peers: bool = False
    short: bool = False
    threads: int = 1
    level: str | None = None
    wheel: str | None = None

    @property
    def engines(self) -> dict[str, str]:
        """PyTorch's engines for int8 layers, and their names in results.

        `x86`, its default, chooses between oneDNN and FBGEMM, which cannot be limited to a level.
        """
        return {"onednn": "torch oneDNN"} | ({} if self.level else {"x86": "torch x86"})

    def size(self, n: int) -> int:
        """Return a number of elements, a sixteenth of it in a short run."""
        return n // 16 if self.short else n

    def side(self, n: int) -> int:
        """Return a side of a matrix, a quarter of it in a short run."""
        return max(1, n // 4) if self.short else n


def counted(n: int) -> str:
    """Return a number of elements as in `16 Mi`.

    >>> counted(2**24), counted(2**19)
    ('16 Mi', '512 Ki')
    """
    return f"{n / 2**20:g} Mi" if n >= 2**20 else f"{n / 2**10:g} Ki"
