"""Accepts an order, or says what is wrong with it. It exits with 1 if it does not accept."""

import json
import os
import sys


def problems(order):
    for number, line in enumerate(order["lines"], start=1):
        if line["count"] < 1:
            yield f"line {number}: the count of {line['article']} is not positive"


with open(os.environ["PADDOCK_INPUT"]) as file:
    found = list(problems(json.load(file)["order"]))
for problem in found:
    print(problem, file=sys.stderr)
with open(os.environ["PADDOCK_RESULT"], "w") as file:
    json.dump({"accepted": not found, "problems": found}, file)
sys.exit(1 if found else 0)
