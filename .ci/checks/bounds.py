"""Check that the debug build notices a write beyond the end."""

import numpy as np

from qatcore._base import dispatch

for level in dispatch.available_levels():
    try:
        dispatch.load_kernels(level).round_e4m3(np.zeros(9), np.zeros(8))
    except IndexError as error:
        print(f"{level}: {error}")
    else:
        raise AssertionError(f"{level}: a write beyond the end went unnoticed")
