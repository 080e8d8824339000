"""Progress of long calibrations; needs tqdm, the extra ``progress``."""

from __future__ import annotations

from types import TracebackType

try:
    from tqdm import tqdm
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("progress=True needs tqdm: pip install 'qatcore[progress]'", name="tqdm") from _missing

_LONGEST_NAME = 24


class BatchProgress:
    """A bar on standard error that counts batches and their bytes.

    Parameters
    ----------
    total : int or None
        How many batches there will be; None if this is not known.
    layers : int or None
        How many layers there will be; None if this is not known.
    """

    def __init__(self, total: int | None, layers: int | None) -> None:
        self._bar = tqdm(total=total, unit=" batches", dynamic_ncols=True)
        self._bytes = 0
        self._layers, self._layer = layers, 0

    def __enter__(self) -> BatchProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def layer(self, name: str) -> None:
        """Name the layer whose batches follow."""
        self._layer += 1
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME // 2 - 1]}…{name[-_LONGEST_NAME // 2 :]}"
        place = "" if self._layers is None or self._layers < 2 else f" {self._layer}/{self._layers}"
        self._bar.set_description_str(name + place, refresh=False)

    def batch(self, n_bytes: int) -> None:
        """Count a batch."""
        self._bytes += n_bytes
        self._bar.set_postfix_str(f"{tqdm.format_sizeof(self._bytes, 'B', 1000)} read", refresh=False)
        self._bar.update()
