"""A sample experiment: fits a line to noisy points. It knows nothing of StudioML.

Its model goes to ../modeldir and its result to ../retval, where StudioML looks for them.
"""

import argparse
import json
import random
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--title", default="a line")
arguments = parser.parse_args()

random.seed(1)
points = [(x / 50, 3 * x / 50 + 1 + random.gauss(0, 0.1)) for x in range(50)]
slope = offset = 0.0
for step in range(1, arguments.steps + 1):
    errors = [(slope * x + offset - y, x) for x, y in points]
    slope -= 0.5 * sum(error * x for error, x in errors) / len(points)
    offset -= 0.5 * sum(error for error, _ in errors) / len(points)
    if step % (arguments.steps // 5 or 1) == 0:
        loss = sum(error**2 for error, _ in errors) / len(points)
        print(f"step {step}: loss {loss:.4f}", flush=True)

model = {"title": arguments.title, "slope": round(slope, 3), "offset": round(offset, 3)}
Path("../modeldir").mkdir(exist_ok=True)
Path("../modeldir/model.json").write_text(json.dumps(model))
Path("../retval").write_text(json.dumps(model["slope"]))
print(f"fitted {arguments.title}: y = {model['slope']} x + {model['offset']}")
