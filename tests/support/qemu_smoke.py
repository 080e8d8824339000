"""Check a few exact results on an emulated CPU that lacks later instructions.

``qemu-x86_64 -cpu Nehalem python tests/support/qemu_smoke.py v2`` and ``-cpu Haswell ... v3`` prove that the import
and the kernels of a level execute no instruction beyond the level: such an instruction ends the process with SIGILL.
"""

import sys

import numpy as np
from values import bell, uniform

import qatcore
from qatcore import CalibMethod, QatConfig, QatLayer, QuantBits, reference


def main(expected_level):
    qatcore.show_config()
    assert qatcore.cpu_level() == expected_level, qatcore.cpu_level()
    qatcore.set_num_threads(2)

    x = np.float32([-1e9, -0.3, 0.0, 0.3, 0.75, 1.26, np.inf, np.nan])
    assert qatcore.quantize_int8(x, 0.5).tolist() == [-64.0, -0.5, 0.0, 0.5, 1.0, 1.5, 63.5, 0.0]
    assert qatcore.quantize_int4(x, 0.5).tolist() == [-4.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.5, 0.0]
    assert qatcore.quantize_fp8([1.97, 0.001, -1e6]).tolist() == [2.0, 0.001953125, -448.0]
    assert reference.quantize_fp8([1.97, 255.9]).tolist() == [1.875, 240.0]
    # This is correctly rounded only if the logarithm is.
    assert reference.kl_divergence_symmetric([1.0], [2.0]).hex() == "0x1.62e42fefa2857p-2"

    a = np.full((3, 70_000), -128, np.int8)
    assert (qatcore.int8_matmul(a, a.T) == 70_000 * 2**14).all()

    # The array is long enough for two threads, and each of its 1000 values occurs equally often.
    ramp = np.arange(1_200_000, dtype=np.float32) % 1000
    collector = qatcore.CalibrationCollector()
    collector.observe(ramp)
    assert collector.n_elements == ramp.size
    assert collector.n_zero == 1200
    assert collector.min_max_scale() == (999 / 255, -128)
    counts, edges = collector.histogram()
    assert counts.sum() == ramp.size
    assert (edges[0], edges[-1]) == (0.0, 1000.0)
    for bits in QuantBits:
        for method in (collector.mse_scale, collector.kl_divergence_scale):
            scale, _ = method(bits=bits, symmetric=True)
            assert 0.0 < scale <= collector.min_max_scale(bits=bits, symmetric=True)[0]

    weights, bias, data = bell(20 * 33, 1).reshape(20, 33), uniform(20, 2), bell(50 * 33, 3).reshape(50, 33)
    for bits in QuantBits:
        layer = QatLayer.from_weights(weights, bias, QatConfig(bits, per_channel=True))
        layer.calibrate_from_data(data, CalibMethod.MSE)
        error = np.abs(layer.forward_infer(data) - (data @ weights.T + bias)).max()
        bound = {QuantBits.INT8: 0.5, QuantBits.INT4: 8.0, QuantBits.INT2: 20.0, QuantBits.FP8: 2.0}[bits]
        assert error < bound, (bits, error)
    print("smoke test passed")


if __name__ == "__main__":
    main(sys.argv[1])
