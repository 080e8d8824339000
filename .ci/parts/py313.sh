source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the tests on Python 3.13 that are the same in any build.  The part py314 runs the others.
wheel_environment 3.13
suite py3.13 "not slow and any_build"
