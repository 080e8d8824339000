source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# The examples in docstrings and documents.
torch_environment

mapfile -t documents < <(find "$work/unpacked/README.md" "$work/unpacked/docs" -name '*.md' | sort)
"$work/torch/bin/python" -P "$checks/doctests.py" "${documents[@]}"
# The example with a cluster starts processes, which have to find it in a file; its output is what the guide says.
marked_block docs/clusters.md python "dask example" >"$work/dask_example.py"
(cd "$work" && "$work/torch/bin/python" -P dask_example.py | tee dask_example.txt)
marked_block docs/clusters.md text "dask output" | diff - "$work/dask_example.txt"
