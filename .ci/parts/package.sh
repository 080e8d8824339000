source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Check the contents of the wheel and of the sdist.
sdist
wheel_environment 3.11
wheel=$(echo "$work"/wheels3.11/qatcore-*.whl)
"$work/py3.11/bin/python" "$checks/wheel.py" "$wheel" "$work/sdist-source" "$(echo "$work"/dist/qatcore-*.tar.gz)"
# The wheel must run without the packages that built it.
"$(interpreter 3.11)/python3.11" -m venv "$work/bare"
"$work/bare/bin/pip" install "$wheel"
"$work/bare/bin/python" -P -c 'import qatcore; qatcore.show_config()'
