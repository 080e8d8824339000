source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# Build the pages; a broken link fails.
sdist
environment docs 3.11 --upgrade pip  # Python 3.11's own pip knows no dependency groups
"$work/docs/bin/pip" install --group "$work/unpacked/pyproject.toml:docs"
(cd "$work/unpacked" && "$work/docs/bin/mkdocs" build --quiet --strict --site-dir "$work/site")
ls "$work/site/index.html" "$work/site/reference/index.html"
