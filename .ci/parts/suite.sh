source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run all tests that are slow, or in which Hypothesis tries more examples than in quick runs.  Of the others, which the
# part readme runs, run those in files that skip tests if a package is missing, such as PyTorch.
torch_environment
suite torch "slow or hypothesis" | tee "$work/suite.txt"
mapfile -t files < <(cd "$work/unpacked" && grep -rl --include='test_*.py' importorskip tests)
suite torch "not slow and not hypothesis" | tee -a "$work/suite.txt"
# No test may be skipped for lack of PyTorch, torchao or OpenVINO: the other parts skip them.
! grep -E "SKIPPED.*(PyTorch|'torch|torchao|'openvino)" "$work/suite.txt"
