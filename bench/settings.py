"""The options of the command line, in the form that the parts need."""

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

        The default engine `x86` chooses between oneDNN and FBGEMM.  FBGEMM cannot be limited to a CPU level, so a run
        with a level leaves `x86` out.
        """
        return {"onednn": "torch oneDNN"} | ({} if self.level else {"x86": "torch x86"})

    def size(self, n: int) -> int:
        """Return a number of elements, divided by 16 in a short run."""
        return n // 16 if self.short else n

    def side(self, n: int) -> int:
        """Return a side of a matrix, divided by 4 in a short run."""
        return max(1, n // 4) if self.short else n


def counted(n: int) -> str:
    """Return a number of elements as text, such as `16 Mi`.

    >>> counted(2**24), counted(2**19)
    ('16 Mi', '512 Ki')
    """
    return f"{n / 2**20:g} Mi" if n >= 2**20 else f"{n / 2**10:g} Ki"
