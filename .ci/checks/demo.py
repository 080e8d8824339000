"""Check the table of the demo: int8 models lose at most half a point."""

import re
import sys
from pathlib import Path

rows = {}
for line in Path(sys.argv[1]).read_text().splitlines():
    if match := re.match(r"(\S.*?) +(-|min_max|percentile|kl|mse) +([\d.]+)%", line):
        rows[match[1], match[2]] = float(match[3])
exact = rows["float32", "-"]
for method in ("min_max", "kl", "mse"):
    accuracy = rows["int8", method]
    print(f"int8 {method}: {accuracy} % against {exact} % in float32")
    assert exact - accuracy <= 0.5, method
