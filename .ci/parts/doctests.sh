source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Run the examples in docstrings and documents.
torch_environment

mapfile -t documents < <(find "$work/unpacked/README.md" "$work/unpacked/docs" -name '*.md' | sort)
"$work/torch/bin/python" -P "$checks/doctests.py" "${documents[@]}"
# The processes of the cluster have to import the example from a file.  Its output has to be the output in the guide.
marked_block docs/clusters.md python "dask example" >"$work/dask_example.py"
(cd "$work" && "$work/torch/bin/python" -P dask_example.py | tee dask_example.txt)
marked_block docs/clusters.md text "dask output" | diff - "$work/dask_example.txt"
