source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# See that the benchmarks run; times mean nothing while the machine runs other tests as well.  Also run the tests
# against torchao, which other parts do not install.
wheel_environment 3.11
environment bench 3.11 -r "$work/unpacked/bench/requirements.txt" "$(echo "$work"/wheels3.11/qatcore-*.whl)" \
    pytest pytest-xdist hypothesis
mkdir "$work/bench-run"
cp -r "$work"/unpacked/{bench,tests,pyproject.toml} "$work/bench-run"
cd "$work/bench-run"
python=$work/bench/bin/python
"$python" -P -m pytest -q tests/codes/test_microscaling.py -k torchao | tee torchao.txt
if grep -q skipped torchao.txt; then exit 1; fi
# Unquoted, so that an empty value gives no argument.
"$python" -m bench --peers ${BENCH---short} --wheel "$work"/wheels3.11/qatcore-*.whl --json all.json --plot chart.svg
"$python" -m bench --from all.json --markdown >all.md
grep -q '^| fake_quantize' all.md
grep -q '</svg>' chart.svg
"$python" -m bench --short --level v2 gemm elementwise
# This fails if a promise about ranges is not kept.
"$python" -m bench.ranges >ranges.md
"$python" -m bench.calibrators ${BENCH---short} | tee calibrators.md
grep -q 'of the memory' calibrators.md
