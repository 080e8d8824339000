# What the modules of int8 products share: names from C, the types of floats, and the scalar formulas.

from libc.math cimport copysign, floor, trunc
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

ctypedef fused floating:
    float
    double

include "rounding.pxi"
include "compiler.pxi"
