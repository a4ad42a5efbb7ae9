# SPDX-License-Identifier: Apache-2.0
"""The wrappers, run as a component process runs them."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from monitoring_world import log, people, publish

from kfloop.components.contracts.decision import Decision, write_decision

EXECUTE = [sys.executable, "-m", "kfp.dsl.executor_main"]
MODULE = Path(__file__).parents[2] / "components" / "monitoring" / "component.py"


def execute(
    folder: Path, function: str, parameters: dict[str, Any], inputs: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Runs one component in its own process; returns the executor's output."""

    def artifact(name: str, uri: str, kind: str, metadata: dict[str, Any]) -> dict[str, Any]:
        schema = {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"}
        return {"artifacts": [{"name": name, "uri": uri, "type": schema, "metadata": metadata}]}

    kinds = {"decision": "Artifact", "page": "HTML", "metrics": "Metrics"}
    if function != "measure_performance":
        del kinds["metrics"]
    outputs = {
        name: artifact(name, str(folder / function / name), kind, {})
        for name, kind in kinds.items()
    }
    described = {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {
                name: artifact(name, given["uri"], given["kind"], given.get("metadata", {}))
                for name, given in inputs.items()
            },
        },
        "outputs": {
            "parameters": {"Output": {"outputFile": str(folder / function / "Output")}},
            "artifacts": outputs,
            "outputFile": str(folder / function / "executor_output.json"),
        },
    }
    (folder / function).mkdir()
    subprocess.run(
        [
            *EXECUTE,
            "--component_module_path",
            str(_source_as_kfp_ships_it(folder, function)),
            "--function_to_execute",
            function,
            "--executor_input",
            json.dumps(described),
        ],
        check=True,
        env=os.environ | {"_KFP_RUNTIME": "true"},
    )
    result: dict[str, Any] = json.loads((folder / function / "executor_output.json").read_text())
    return result


def _source_as_kfp_ships_it(folder: Path, function: str) -> Path:
    """The compiler puts the function's source without its decorator into the pipeline."""
    tree = ast.parse(MODULE.read_text())
    body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    body.decorator_list = []
    shipped = folder / function / "ephemeral_component.py"
    imports = "import kfp\nfrom kfp import dsl\nfrom kfp.dsl import *\nfrom typing import *\n\n"
    shipped.write_text(imports + ast.unparse(body))
    return shipped


def metadata(result: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = result["artifacts"][name]["artifacts"][0]["metadata"]
    return found


def test_the_three_components_close_the_loop_in_their_processes(tmp_path: Path) -> None:
    release = {"auc": {"value": 0.79, "low": 0.77, "high": 0.81}}
    model = publish(tmp_path / "model", people(3000, seed=0), release)
    moved = people(3000, seed=1)
    moved["age"] = moved["age"] + 30
    window = {"uri": str(log(tmp_path / "window", moved)), "kind": "Dataset"}

    drift = execute(tmp_path, "detect_drift", {"model_uri": model}, {"current": window})
    assert drift["parameterValues"]["Output"] == "fail"
    assert metadata(drift, "decision")["drifted"] == ["age"]
    performance = execute(tmp_path, "measure_performance", {"model_uri": model}, {"joined": window})
    assert performance["parameterValues"]["Output"] == "pass"
    assert 0.7 < metadata(performance, "metrics")["auc"] < 0.9

    quality = tmp_path / "quality.json"
    write_decision(Decision("data", "pass"), quality)
    gates = {
        "joined": window,
        "data_quality": {"uri": str(quality), "kind": "Artifact"},
        "drift": {
            "uri": str(tmp_path / "detect_drift" / "decision"),
            "kind": "Artifact",
            "metadata": metadata(drift, "decision"),
        },
        "performance": {
            "uri": str(tmp_path / "measure_performance" / "decision"),
            "kind": "Artifact",
            "metadata": metadata(performance, "decision"),
        },
    }
    decided = execute(
        tmp_path, "decide_retraining", {"model_uri": model, "cooldown_days": 1.0}, gates
    )
    # the newest event came with the drift decision
    assert decided["parameterValues"]["Output"] == "retrain"
    assert metadata(decided, "decision")["action"] == "retrain"
