source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Test under AddressSanitizer and UndefinedBehaviorSanitizer.  First check that each of them ends a faulty process.
must_die() {
    local program="import numpy as np, qatcore; k = qatcore._base.dispatch.load_kernels('$1'); $3"
    if "${runtime[@]}" "$work/sanitize/bin/python" -P -c "$program" >"$work/report" 2>&1; then
        echo "$1: went unnoticed: $3" >&2
        return 1
    fi
    grep -m 1 "$2" "$work/report" || { cat "$work/report"; return 1; }
}

special_environment sanitize QATCORE_SANITIZE
# Without -s, pytest would swallow the report.  The interpreter itself leaks, so leaks are not detected.
runtime=(
    env "LD_PRELOAD=$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)"
    ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTEST_ADDOPTS=-s
)
for module in "$work"/sanitize/lib/python3.11/site-packages/qatcore/*.so; do
    symbols=$(nm -D "$module")
    for symbol in __asan_init __asan_report_store8 __ubsan_handle_float_cast_overflow_abort; do
        grep -q " U $symbol$" <<<"$symbols" || { echo "$module lacks $symbol" >&2; exit 1; }
    done
done
levels=$("${runtime[@]}" "$work/sanitize/bin/python" -P -c \
    'from qatcore._base import dispatch; print(*dispatch.available_levels())')
for level in $levels; do
    must_die "$level" "AddressSanitizer: heap-buffer-overflow" 'k.round_e4m3(np.zeros(999), np.zeros(998))'
    must_die "$level" "outside the range of representable values" \
        'k.encode_integer(np.full(1, 1e10), np.zeros(1, "i1"), np.ones(1), np.zeros(1, "i4"), -1e10, 1e10)'
done
suite sanitize "not slow and not any_build" "${runtime[@]}"
