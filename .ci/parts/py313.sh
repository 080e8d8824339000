source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# The tests on Python 3.13; 3.11 runs them as README.md says.
wheel_environment 3.13
suite py3.13 "not slow"
