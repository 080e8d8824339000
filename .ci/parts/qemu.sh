source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Test older CPUs by emulation.
wheel_environment 3.11
python=$work/py3.11/bin/python
tests=$work/unpacked/tests
# OpenBLAS would follow this variable instead of the CPU.
unset OPENBLAS_CORETYPE
for cpu in Nehalem:v2 Haswell:v3; do
    qemu-x86_64 -cpu "${cpu%:*}" "$python" "$tests/support/qemu_smoke.py" "${cpu#*:}" 2>"$work/qemu-warnings" ||
        { cat "$work/qemu-warnings" >&2; exit 1; }
done
# Compare the short digest; both emulated CPUs run at the same time.
for level in v2 v3; do
    cpu=$([[ $level = v2 ]] && echo Nehalem || echo Haswell)
    qemu-x86_64 -cpu $cpu "$python" "$tests/digest.py" --short --sections >"$work/digest-$level" 2>&1 &
done
wait
here=$("$python" "$tests/digest.py" --short)
for level in v2 v3; do
    grep -q "^$here$" "$work/digest-$level" || { echo "another digest than $here:"; cat "$work/digest-$level"; exit 1; }
    echo "$level: the same digest under emulation, $here"
done
