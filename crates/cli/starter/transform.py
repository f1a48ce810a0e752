"""Keeps the rows whose amount is large enough."""

import json
import os


def transform(rows, least):
    kept = [row for row in rows if row["amount"] >= least]
    return {"rows": kept, "left_out": len(rows) - len(kept)}


with open(os.environ["PADDOCK_INPUT"]) as file:
    asked = json.load(file)
result = transform(asked["rows"], asked["least"])
print(f"{len(result['rows'])} of {len(asked['rows'])} rows are kept")
with open(os.environ["PADDOCK_RESULT"], "w") as file:
    json.dump(result, file)
