"""Check the output of README's example on a real model: its accuracy, and the share of it that is quantised."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text()
exact, quantised = map(float, re.findall(r"^accuracy +([\d.]+) % float, ([\d.]+) % quantised", text, re.M)[-1])
share = float(re.findall(r"([\d.]+) % of all multiply-adds by weights", text)[0])
print(f"magika: {exact} % in float, {quantised} % in int8, {share} % of the multiply-adds")
assert exact > 85.0 and quantised > exact - 1.0 and share == 100.0
