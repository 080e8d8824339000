source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the tests that depend on the build on Python 3.14.  It and its compiler come from Debian unstable, in a directory of
# their own.  Only the processes in this directory see what is mounted there.  pip downloads the packages outside of it,
# where the network is set up.
tests="not slow and not any_build"
on_python_313() {
    echo "on Python 3.13 instead of 3.14: $1"
    wheel_environment 3.13
    suite py3.13 "$tests"
    exit
}
sdist
[[ $EUID -eq 0 ]] || on_python_313 "only root can make a Debian (debootstrap)"
debian=$work/debian
mirror=$(grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | head -n 1) || true
packages=python3.14-venv,python3.14-dev,gcc,libc6-dev
unshare --mount debootstrap --variant=minbase --include="$packages" sid "$debian" \
    "${mirror:-http://deb.debian.org/debian}" >"$work/debootstrap.log" || {
    tail -n 20 "$work/debootstrap.log"
    on_python_313 "Debian's unstable cannot be had now"
}
machine=$(uname -m)
"$work/build/bin/python" "$checks/requirements.py" "$work/unpacked/pyproject.toml" >"$work/requirements"
platforms=()
for glibc in 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${glibc}_$machine"); done
"$work/build/bin/pip" download --dest "$debian/tmp/packages" --only-binary=:all: --python-version 3.14 \
    "${platforms[@]}" --platform "manylinux2014_$machine" -r "$work/requirements"
cp "$work"/dist/qatcore-*.tar.gz "$work/requirements" "$debian/tmp"
cp -r "$work"/unpacked/{tests,docs,pyproject.toml} "$debian/tmp/packages"
cat >"$debian/tmp/suite" <<'END'
set -euo pipefail
cd /tmp/packages
python3.14 -m venv /tmp/environment
pip="/tmp/environment/bin/pip -q install --no-index --find-links ."
$pip -r /tmp/requirements
$pip --no-build-isolation --no-deps /tmp/qatcore-*.tar.gz
/tmp/environment/bin/python -P -m pytest -q -m "$1"
END
unshare --mount bash -euc '
    mount -t proc proc "$0/proc"
    mount -t tmpfs tmpfs "$0/dev/shm"
    exec chroot "$0" env -i PATH=/usr/bin:/bin HOME=/root LANG=C.UTF-8 bash /tmp/suite "$1"
' "$debian" "$tests"
