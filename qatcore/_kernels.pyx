# The compiled loops of qatcore; kernels/README.md says which file has what.
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

include "kernels/rounding.pxi"
include "kernels/minifloat.pxi"
include "kernels/compiler.pxi"
include "kernels/elementwise.pxi"
include "kernels/affine.pxi"
include "kernels/gradients.pxi"
include "kernels/blocks.pxi"
include "kernels/histogram.pxi"
include "kernels/accumulate.pxi"
include "kernels/thresholds.pxi"
include "kernels/gemm_portable.pxi"
include "kernels/cpu.pxi"
