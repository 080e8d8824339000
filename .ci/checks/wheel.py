"""Check the contents of the wheel and of the sdist, and the size of the wheel."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

wheel, clone, sdist = map(Path, sys.argv[1:])
names = zipfile.ZipFile(wheel).namelist()
print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.2f} MiB, {len(names)} files")
assert wheel.stat().st_size <= 4e6
assert {"qatcore/py.typed", "qatcore/_kernels.pyi"} <= set(names)
modules = {n.split("/")[1].split(".")[0] for n in names if n.endswith(".so")}
assert modules == {"_kernels", "_kernels_v3", "_kernels_v4", "_gemm_avxvnni", "_gemm_vnni", "_gemm_amx"}, modules
unwanted = [n for n in names if n.endswith((".c", ".pyx", ".pxi", ".pxd", ".md")) or not n.startswith("qatcore")]
assert not unwanted, unwanted
tracked = subprocess.check_output(["git", "-C", clone, "ls-files"], text=True).splitlines()
with tarfile.open(sdist) as archive:
    packed = {name.partition("/")[2] for name in archive.getnames()}
missing = [n for n in tracked if not n.startswith(".git") and n not in packed]
assert not missing, f"not in the sdist: {missing}"
generated = [n for n in packed if n.endswith((".c", ".so", ".pyc"))]
assert not generated, generated
