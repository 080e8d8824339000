# The compiled loops of qatcore; kernels/README.md says which file has what.
#
# setup.py compiles this source once for each CPU level.  So a function here must give the same bits, whatever
# instructions the compiler chooses.  It uses nothing of libm but rint, rintf, trunc, floor, fabs, copysign and sqrt,
# which are exact or correctly rounded.  It allows no contraction, and no sum with an order that depends on the vector
# width.
#
# Every `def` takes typed memoryviews, releases the GIL, and runs a loop.  Python has validated the arguments and
# allocated the results.  Floating-point arrays are float32 or float64, and C-contiguous unless a signature says
# otherwise.  Functions that change data shared by threads keep the GIL.  The modules do not declare that they can do
# without it, so a free-threaded Python turns it on.

from libc.math cimport copysign, fabs, floor, rint, rintf, sqrt, trunc
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
include "kernels/weights.pxi"
include "kernels/gemm_portable.pxi"
include "kernels/cpu.pxi"
