source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Test quantised models in older versions of ONNX Runtime; the part suite has the newest.
wheel_environment 3.11

for version in 1.20.1 1.23.2 1.27.0; do
    environment "onnxruntime$version" 3.11 "$(echo "$work"/wheels3.11/qatcore-*.whl)[onnx]" "onnxruntime==$version" \
        pytest pytest-xdist hypothesis threadpoolctl
    mkdir "$work/runtimes$version"
    cp -r "$work"/unpacked/{tests,docs,pyproject.toml} "$work/runtimes$version"
    cd "$work/runtimes$version"
    "$work/onnxruntime$version/bin/python" -P -m pytest -q -m "slow or not slow" tests/onnx/test_kernels.py
done
