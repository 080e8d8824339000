source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run all tests, in all combinations of their parameters, with PyTorch and torchao.
torch_environment
suite torch "slow or not slow" | tee "$work/suite.txt"
# No test may be skipped for lack of PyTorch or torchao: the other parts skip them.
! grep -E "SKIPPED.*(PyTorch|'torch|torchao)" "$work/suite.txt"
