"""Check the tables of the examples: training under quantisation regains accuracy."""

import re
import sys
from pathlib import Path

# The bounds are loose: the documentation's figures are for more seeds and epochs.
for name, lost, gained in ((sys.argv[1], 0.5, 5.0), (sys.argv[2], 1.5, 3.0)):
    rows = dict(re.findall(r"^\| (\w[^|]*?) \| ([\d.]+) ", Path(name).read_text(), re.M))
    accuracy = {row: float(value) for row, value in rows.items()}
    print(name, accuracy)
    assert accuracy["int4, trained"] >= accuracy["float"] - lost, name
    assert accuracy["int2, trained"] >= accuracy["int2, quantised afterwards"] + gained, name
