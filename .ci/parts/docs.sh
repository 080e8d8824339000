source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# The pages, with every link in them.
sdist
environment docs 3.11 --upgrade pip  # the one that comes with Python 3.11 knows no dependency groups
"$work/docs/bin/pip" install --group "$work/unpacked/pyproject.toml:docs"
(cd "$work/unpacked" && "$work/docs/bin/mkdocs" build --quiet --strict --site-dir "$work/site")
ls "$work/site/index.html" "$work/site/reference/index.html"
