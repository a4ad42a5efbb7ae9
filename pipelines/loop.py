# SPDX-License-Identifier: Apache-2.0
"""`loop.yaml`: one file that describes a whole loop.

`load_loop` checks the file before anything runs and names every mistake by key and line. The
sections are in `loop_sections`, `loop_training` and `loop_serving`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)

from kfloop.components.contracts.errors import InputError
from kfloop.components.training.hyperparameters import parse_hyperparameters
from kfloop.components.training.search_space import parse_dimension
from kfloop.pipelines.loop_checks import check_judgement
from kfloop.pipelines.loop_sections import (
    Examples,
    Features,
    Name,
    Section,
    Source,
    Split,
    Validation,
)
from kfloop.pipelines.loop_serving import BatchScoring, Monitoring, Replay, Serving
from kfloop.pipelines.loop_training import Evaluation, Gate, Training
from kfloop.pipelines.pod_settings import ObjectName, SecretReference, VariableName, Volume
from kfloop.pipelines.resources import TaskResources, problem
from kfloop.pipelines.yaml_file import Lines, read_yaml_file


class Loop(Section):
    """A whole loop; see the sections for what each key means.

    Attributes:
        resources: What the tasks of a component get on a cluster, over kfloop's own table.
        environment: Environment variables of the tasks on a cluster.
        secrets: Environment variables that they get from Kubernetes Secrets.
        volumes: PersistentVolumeClaims that are mounted there.
        registry: Where models are registered: an MLflow tracking URI, `kubeflow+http://…` for a
            Kubeflow Model Registry, or `none`; on a laptop `.kfloop/mlflow.db` unless given.
    """

    name: Name
    task: Literal["binary", "multiclass", "regression"]
    sources: Annotated[dict[str, Source], Field(min_length=1)]
    examples: Examples
    features: Features | None = None
    split: Split = Split()
    validation: Validation = Validation()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    gate: Gate = Gate()
    serving: Serving = Serving()
    monitoring: Monitoring = Monitoring()
    replay: Replay = Replay()
    batch_scoring: BatchScoring = BatchScoring()
    resources: dict[str, TaskResources] = Field(default_factory=dict)
    environment: dict[VariableName, str] = Field(default_factory=dict)
    secrets: dict[VariableName, SecretReference] = Field(default_factory=dict)
    volumes: dict[ObjectName, Volume] = Field(default_factory=dict)
    registry: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Loop":
        if self.split.method == "time" and not self.examples.timestamp:
            raise ValueError(
                "split.method is time but examples.timestamp is not set; set it, or use "
                "method: hash"
            )
        if self.split.method != "time" and not self.split.key:
            raise ValueError(f"split.method {self.split.method} needs split.key")
        return self

    @property
    def service(self) -> str:
        """The InferenceService name."""
        return self.serving.service or self.name

    @property
    def label_keys(self) -> list[str]:
        """The columns by which labels are joined to predictions."""
        if self.examples.keys:
            return self.examples.keys
        return [c for c in (*self.examples.entities, self.examples.timestamp) if c]


def load_loop(path: str | Path) -> tuple[Loop, Path]:
    """Reads and checks a loop file.

    Returns:
        The loop, and the directory its relative paths start from.

    Raises:
        InputError: If the file is missing or wrong; the message names key and line.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"There is no loop file {file}; give its path with --config.")
    loop, lines = read_yaml_file(file, Loop, "a loop file", "name and sources")
    base = file.resolve().parent
    _require_files(loop, base, file, lines)
    _check_hyperparameters(loop, file, lines)
    _check_space(loop, file, lines)
    check_judgement(loop, file, lines)
    _check_resources(loop, file, lines)
    return loop, base


def _check_hyperparameters(loop: Loop, file: Path, lines: Lines) -> None:
    """Checks the hyperparameters with the rules of the component that reads them."""
    training = loop.training
    try:
        parse_hyperparameters(training.hyperparameters, open_ended=bool(training.module))
    except InputError as error:
        line = lines[("training", "hyperparameters")]
        raise InputError(f"{file} line {line}: training.hyperparameters: {error}") from error


def _check_space(loop: Loop, file: Path, lines: Lines) -> None:
    """Checks the search space with the rules of the component that reads it."""
    space = loop.training.tuning.given_space if loop.training.tuning else {}
    for name, given in space.items():
        try:
            parse_dimension(name, given, open_ended=bool(loop.training.module))
        except InputError as error:
            line = lines[("training", "tuning", "space", name)]
            place = f"{file} line {line}: training.tuning.space.{name}"
            raise InputError(f"{place}: {error}") from error


def _check_resources(loop: Loop, file: Path, lines: Lines) -> None:
    for name, given in loop.resources.items():
        if wrong := problem(name, given):
            line = lines[("resources", name)]
            raise InputError(f"{file} line {line}: resources.{name}: {wrong}.")
    for section, entries in (("secrets", loop.secrets), ("volumes", loop.volumes)):
        for name, entry in entries.items():
            if entry.unknown:
                line = lines[(section, name)]
                raise InputError(
                    f"{file} line {line}: {section}.{name}.components: there is no component "
                    f"{', '.join(entry.unknown)}."
                )


def _require_files(loop: Loop, base: Path, file: Path, lines: Lines) -> None:
    wanted: list[tuple[tuple[str, ...], str]] = [
        *((("sources", name, "uri"), source.uri) for name, source in loop.sources.items()),
        *((("sources", name, "query"), source.query) for name, source in loop.sources.items()),
        (("examples", "query"), loop.examples.query),
        (("training", "module"), loop.training.module),
        (("validation", "schema"), loop.validation.data_schema),
    ]
    if loop.features:
        wanted.append((("features", "repo"), loop.features.repo))
        wanted += [(("features", "tables", n), q) for n, q in loop.features.tables.items()]
    for place, value in wanted:
        is_path = place[-1] in ("uri", "module", "schema", "repo")
        if not value or "://" in value or value.startswith("${") or "*" in value:
            continue
        if not is_path and not value.endswith(".sql"):
            continue
        if is_path and _on_volume(value, loop):
            continue
        if not (base / value).exists():
            raise InputError(
                f"{file} line {lines.get(place, 1)}: {'.'.join(place)}: there is no {base / value}."
            )


def _on_volume(path: str, loop: Loop) -> bool:
    """Whether only the pods can tell if it is there."""
    return any(Path(path).is_relative_to(volume.path) for volume in loop.volumes.values())
