# SPDX-License-Identifier: Apache-2.0
"""Asks a served model for rows that were evaluated, on V1 and V2; prints the largest difference.

Run in the deployment family's environment: RUN_JSON URL MODEL.
"""

import json
import sys
import urllib.request
from pathlib import Path

from kfloop.components.contracts.dataset import read_dataset
from kfloop.components.contracts.model_package import read_model_json
from kfloop.components.deployment.packages import instances_of

ROWS = 500


def post(url: str, body: dict) -> dict:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode(), headers)
    ) as answer:
        return json.load(answer)


def main() -> None:
    run, url, model = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], sys.argv[3]
    tasks = {task["component"]: task["outputs"] for task in run["tasks"] if task["outputs"]}
    rows = read_dataset(tasks["split_data"]["evaluation"][0]["uri"]).slice(0, ROWS)
    expected = read_dataset(tasks["evaluate_model"]["predictions"][0]["uri"])
    expected = expected["prediction"].to_pylist()[:ROWS]
    package = read_model_json(tasks["train_model"]["model"][0]["uri"])
    instances = instances_of(rows, package.feature_names)
    answer = post(f"{url}/v1/models/{model}:predict", {"instances": instances})
    v1 = [row[package.output] for row in answer["predictions"]]
    inputs = []
    for feature in package.features:
        values = [instance[feature.name] for instance in instances]
        if feature.type == "string":
            data, datatype = [value or "" for value in values], "BYTES"
        else:
            data, datatype = [float("nan") if v is None else float(v) for v in values], "FP64"
        tensor = {"name": feature.name, "shape": [len(data)], "datatype": datatype, "data": data}
        inputs.append(tensor)
    answer = post(f"{url}/v2/models/{model}/infer", {"inputs": inputs})
    v2 = next(o["data"] for o in answer["outputs"] if o["name"] == package.output)
    largest = max(
        abs(one - other) for served in (v1, v2) for one, other in zip(served, expected, strict=True)
    )
    print(json.dumps({"rows": len(expected), "largest": largest}))


if __name__ == "__main__":
    main()
