"""Time int8 matrix products beside PyTorch, oneDNN as PyTorch calls it, and float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import qatcore

from . import peak, peers
from .checks import near, same
from .settings import Settings
from .timing import Bar, Row, faster, share

#: As in a layer, activations have a zero point and weights have none.  Each column has a scale and a bias.
A_ZERO_POINT = 5


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    of_peak = share(0.40) if settings.threads == 1 else None  # the peak is measured on one core
    for shape, bar, peak_bar, charted in (
        ((1024, 1024, 1024), faster(1.15), of_peak, True),
        ((64, 4096, 4096), faster(1.0), None, True),
        ((1, 4096, 4096), faster(0.95), None, True),
        ((2048, 2048, 2048), None, None, False),
        ((899, 64, 256), None, None, False),
    ):
        m, k, n = (settings.side(size) for size in shape)
        row = Row(f"int8_linear {m} x {k} x {n} packed, to float32", operations=2 * m * k * n)
        if charted:
            row.chart = f"int8 linear, {m} x {k} x {n}"
        yield linear(row, Problem(m, k, n), settings, bar, peak_bar)
    yield matmul(settings.side(1024), settings)


class Problem:
    """The operands of ``(a - za) @ b * (a_scale * b_scale) + bias``, and the result in float64."""

    def __init__(self, m: int, k: int, n: int) -> None:
        rng = np.random.default_rng(0)
        self.a = rng.integers(-128, 128, (m, k), np.int8)
        # Only 7 bits: without VNNI, oneDNN and FBGEMM add pairs of products in 16 bits, which must not saturate.
        self.b = rng.integers(-64, 64, (k, n), np.int8)
        self.a_scale = 2.0**-7  # exact in float32, because the peers take float32
        self.b_scale = rng.uniform(0.005, 0.02, n).astype(np.float32)
        self.scale = self.a_scale * self.b_scale.astype(np.float64)
        self.bias = rng.normal(size=n).astype(np.float32)
        #: ``a @ b``: float64 holds every sum exactly.
        self.product = self.a.astype(np.float64) @ self.b.astype(np.float64)
        self.value = (self.product - A_ZERO_POINT * self.b.sum(axis=0, dtype=np.float64)) * self.scale + self.bias

    def by_columns(self) -> np.ndarray:
        """Return b with shape (n, k), as the peers' layers take it."""
        return np.ascontiguousarray(self.b.T)

    def unsigned(self) -> np.ndarray:
        """Return a as uint8, as the peers take it; its codes and its zero point are greater by 128."""
        return self.a.view(np.uint8) ^ np.uint8(0x80)


def linear(row: Row, problem: Problem, settings: Settings, bar: Bar | None, peak_bar: Bar | None) -> Row:
    """Row: an int8 product to float32, with scales, zero point, bias and weights that are packed beforehand."""
    a, scale, bias, value = problem.a, problem.scale, problem.bias, problem.value
    packed, out = qatcore.PackedInt8Matrix(problem.b), np.empty(value.shape, np.float32)

    def ours() -> np.ndarray:
        return qatcore.int8_linear(a, packed, scale, bias, a_zero_point=A_ZERO_POINT, out=out)

    same(row.work, ours(), value.astype(np.float32))
    row.ours(ours)
    if settings.peers:
        call = pointwise(problem)
        # oneDNN scales and adds in float32: two roundings more, and those of the scales.
        near(f"{row.work}, oneDNN", call().numpy(), value, 2.0**-22 * np.abs(value).max())
        row.peer("torch oneDNN: qlinear_pointwise", call, bar)
        for engine, name in settings.engines.items():
            step, zero_point = float(np.abs(value).max() / 127), 128
            call = quantized_linear(problem, step, zero_point, engine)
            # PyTorch computes in float32 as well, so a value next to a tie may get the neighbouring code.
            near(f"{row.work}, {name}", call().int_repr().numpy(), np.rint(value / step) + zero_point, 1)
            row.peer(f"{name}: quantized.linear, to uint8", call, bar if engine == "onednn" else None)
    left, right = a.astype(np.float32), problem.b.astype(np.float32)
    row.peer("numpy float32: matmul", lambda: np.matmul(left, right, out=out))
    add_limit(row, problem, peak_bar)
    return row


def pointwise(problem: Problem) -> Callable[[], Any]:
    """Return oneDNN's product with packed weights, called as PyTorch's compiler calls it.

    The activations are uint8.  With int8 activations on a CPU without AMX, oneDNN falls back to a reference
    implementation that is thousands of times slower.
    """
    import torch

    weights = torch.ops.onednn.qlinear_prepack(torch.from_numpy(problem.by_columns()), list(problem.a.shape))
    n = problem.b.shape[1]
    arguments = (
        torch.from_numpy(problem.unsigned()),
        problem.a_scale,
        A_ZERO_POINT + 128,
        weights,
        torch.from_numpy(problem.b_scale),
        torch.zeros(n, dtype=torch.int32),
        torch.from_numpy(problem.bias),
        1.0,  # scale and zero point of a quantised result
        0,
        torch.float32,
        "none",  # no operation on the result
        [],
        "",
    )
    return lambda: torch.ops.onednn.qlinear_pointwise(*arguments)


def quantized_linear(problem: Problem, step: float, zero_point: int, engine: str) -> Callable[[], Any]:
    """Return PyTorch's quantised linear layer; its uint8 result has a quarter of the bytes of qatcore's."""
    import torch

    weights = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(problem.by_columns()),
        torch.from_numpy(problem.b_scale.astype(np.float64)),
        torch.zeros(problem.b.shape[1], dtype=torch.int64),
        0,  # the axis
    )
    with peers.engine(engine):
        packed = torch.ops.quantized.linear_prepack(weights, torch.from_numpy(problem.bias))
    activations = torch._make_per_tensor_quantized_tensor(
        torch.from_numpy(problem.unsigned()), problem.a_scale, A_ZERO_POINT + 128
    )
    return lambda: torch.ops.quantized.linear(activations, packed, step, zero_point)


def matmul(side: int, settings: Settings) -> Row:
    """Row: the plain integer product, with nothing packed beforehand."""
    row = Row(f"int8_matmul {side} x {side} x {side}, to int64", operations=2 * side**3)
    problem = Problem(side, side, side)
    a, b = problem.a, problem.b
    same(row.work, qatcore.int8_matmul(a, b), problem.product.astype(np.int64))
    row.ours(lambda: qatcore.int8_matmul(a, b))
    if settings.peers:
        import torch

        bar = faster(1.0 if qatcore.cpu_level() == "amx" else 0.9)
        left = torch.from_numpy(a)
        transposed = torch.from_numpy(problem.by_columns()).t()
        for layout, right in (("b by rows", torch.from_numpy(b)), ("b by columns", transposed)):
            same(f"{row.work}, torch", torch._int_mm(left, right).numpy(), problem.product.astype(np.int32))
            row.peer(f"torch: _int_mm to int32, {layout}", lambda right=right: torch._int_mm(left, right), bar)
    add_limit(row, problem)
    return row


def add_limit(row: Row, problem: Problem, bar: Bar | None = None) -> None:
    """Add the limit: reading b if a has one row, else the peak rate of the multiply-add instruction."""
    unit = peak.of_level(qatcore.cpu_level())
    if problem.a.shape[0] == 1:
        # This is NumPy's fastest way to read bytes, about three times as fast as copying them.
        words = problem.b.reshape(-1).view(np.int32)
        row.limit("numpy: max over b's bytes", words.max)
    elif unit.name is not None:
        row.limit(f"{unit.name}, in registers", unit.work(row.operations), bar)
