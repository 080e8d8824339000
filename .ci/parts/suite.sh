source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run all slow tests, and the others where some are skipped if a package is missing, such as PyTorch.  The part readme
# runs all others without PyTorch.
torch_environment
suite torch slow | tee "$work/suite.txt"
cd "$work/tests-torch"
mapfile -t files < <(grep -rl importorskip tests)
"$work/torch/bin/python" -P -m pytest -q -m "not slow" "${files[@]}" | tee -a "$work/suite.txt"
# No test may be skipped for lack of PyTorch or torchao: the other parts skip them.
! grep -E "SKIPPED.*(PyTorch|'torch|torchao)" "$work/suite.txt"
