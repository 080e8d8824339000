source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the demo of docs/formats.md and README.md's tests, as a reader would.
clone readme
follow docs/formats.md "demo command" readme | tee "$work/demo.txt"
"$work/readme/.venv/bin/python" "$checks/demo.py" "$work/demo.txt"
follow README.md "test command" readme
git -C "$work/readme" status --porcelain >"$work/left"
[[ ! -s $work/left ]] || { echo "building and testing left files in the tree:"; cat "$work/left"; exit 1; }
! find "$work/readme" -name '*.c' -not -path '*/build/*' -not -path '*/.venv/*' | grep .
