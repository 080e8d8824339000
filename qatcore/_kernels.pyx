# The compiled loops of qatcore, one file a subject:
#
#   _rounding.pxi     the scalar formulas: roundings, the reference's FP8, a logarithm of our own
#   _minifloat.pxi    those of FP8 and FP4
#   _compiler.pxi     what compilers have to be told
#   _elementwise.pxi  quantise, encode and round whole arrays, by the reference's rounding
#   _affine.pxi       quantise and dequantise them, by ONNX's
#   _gradients.pxi    gradients of fake quantisation, and which values it clips
#   _blocks.pxi       the greatest magnitude of blocks, codes packed several a byte
#   _histogram.pxi    range scan, the reference's histogram, the histogram of leading bits
#   _accumulate.pxi   histograms of leading bits of many channels, added to in place
#   _thresholds.pxi   expected squared error and KL divergence of candidate clipping ranges
#   _gemm_portable.pxi, _gemm_tile.pxi, _gemm.pxi
#                     the int8 matrix product: micro-kernel for any CPU, its register tile, the loops around it
#   _cpu.pxi          which CPU level this machine can run
#
# This source is compiled once for each CPU level (see setup.py), so a function here must give the
# same bits whatever instructions the compiler chooses: no libm beyond rint, trunc, floor, fabs and copysign
# (all exact), no contraction, and no sum whose order depends on the vector width.
#
# Every `def` takes typed memoryviews, releases the GIL, and does nothing else: Python has validated
# the arguments and allocated the results.  Floating point enters as float32 or float64, C-contiguous.  Those that
# change what threads share keep the GIL; the modules do not declare that they do without, so that a free-threaded
# Python turns it on.

from libc.math cimport copysign, fabs, floor, rint, rintf, trunc
from libc.stdint cimport (
    INT32_MAX, INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t,
)
from libc.string cimport memcpy, memset

ctypedef fused floating:
    float
    double

include "_rounding.pxi"
include "_minifloat.pxi"
include "_compiler.pxi"
include "_elementwise.pxi"
include "_affine.pxi"
include "_gradients.pxi"
include "_blocks.pxi"
include "_histogram.pxi"
include "_accumulate.pxi"
include "_thresholds.pxi"
include "_gemm_portable.pxi"
include "_cpu.pxi"
