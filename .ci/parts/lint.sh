source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Check the sources: style, types, prose.
torch_environment
clone lint-source
PATH=$work/torch/bin:$PATH
sample=$work/lint-source/tests/typing/sample.py
pip install ruff mypy cython-lint "pyright[nodejs]"
cd "$work/lint-source"
scripts/check
# Check the stubs and a user's program against the installed package, since the clone has no compiled modules.
cd "$work"
python -P -m mypy.stubtest qatcore._kernels --mypy-config-file "$work/lint-source/pyproject.toml"
mypy --strict --config-file= "$sample"
pyright "$sample"
