source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# All tests, in all products of their parameters, with PyTorch.
torch_environment
suite torch "slow or not slow" | tee "$work/suite.txt"
# What needs PyTorch is skipped nowhere else.
! grep -E "SKIPPED.*(PyTorch|'torch')" "$work/suite.txt"
