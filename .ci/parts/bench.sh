source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# See that the benchmarks run; times mean nothing while the machine runs other tests as well.
torch_environment
mkdir "$work/bench-run"
cp -r "$work"/unpacked/{bench,tests} "$work/bench-run"  # one benchmark reads an oracle of the tests
cd "$work/bench-run"
python=$work/torch/bin/python
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
