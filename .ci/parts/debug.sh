source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Test a build that checks bounds, and emulate AMX and AVX-VNNI on a machine without them.
special_environment debug QATCORE_DEBUG QATCORE_EMULATE
"$work/debug/bin/python" -P "$checks/bounds.py"
"$work/debug/bin/python" -P -c 'import qatcore; qatcore.show_config()'
if "$work/debug/bin/python" -P -c 'from qatcore._base import dispatch; assert "vnni" in dispatch.available_gemms()'; then
    export QATCORE_EMULATE=1
    "$work/debug/bin/python" -P -c 'import qatcore; assert qatcore.cpu_level() == "amx"'
    "$work/debug/bin/python" -P -c 'from qatcore._base import dispatch; assert "avxvnni" in dispatch.available_gemms()'
else
    echo "not emulated: that needs a CPU with AVX-512 VNNI"
fi
suite debug "not slow and not any_build"
