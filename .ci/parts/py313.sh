source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the tests on Python 3.13.  The part readme runs them on 3.11.
wheel_environment 3.13
suite py3.13 "not slow"
