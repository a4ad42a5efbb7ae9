# SPDX-License-Identifier: Apache-2.0
"""What tests of components and pipelines need, of kfloop's and of your own.

    def test_trips_without_a_station_are_left_out(tmp_path):
        trips = dataset(tmp_path / "trips", [{"station": "A"}, {"station": None}])
        done = run_component(drop_incomplete, tmp_path, trips=trips)
        assert done.artifacts["kept"].metadata["rows"] == 1

Nothing here is mocked: `run_component` compiles the component and runs it as `kfloop run` would, in
its family's environment; the factories write what the contracts say; `assert_golden` compares
compiled YAML. `kfloop.testing.doubles` holds servers that answer as the Kubernetes API with KServe
does, and `kfloop.testing.doubles.kfp_api` one that answers as the KFP API does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfloop.testing.artifact import Artifact
    from kfloop.testing.components import ComponentFailed, ComponentRun, run_component
    from kfloop.testing.factories import (
        dataset,
        decision,
        inference_log,
        model_package,
        schema,
        tables,
    )
    from kfloop.testing.golden import assert_golden

__all__ = [
    "Artifact",
    "ComponentFailed",
    "ComponentRun",
    "assert_golden",
    "dataset",
    "decision",
    "inference_log",
    "model_package",
    "run_component",
    "schema",
    "tables",
]
# Imported when asked for: a family's environment can make artifacts, and has nothing to compile.
_MODULES = {
    "Artifact": "artifact",
    "ComponentFailed": "components",
    "ComponentRun": "components",
    "run_component": "components",
    "assert_golden": "golden",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"kfloop.testing has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"kfloop.testing.{_MODULES.get(name, 'factories')}"), name)
