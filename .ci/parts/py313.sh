source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the tests on Python 3.13 that are the same in any build.  The part readme runs all on 3.11, and py314 the others.
# Without root there is no py314, so all run here.
wheel_environment 3.13
suite py3.13 "not slow$( ((EUID)) || echo ' and any_build')"
