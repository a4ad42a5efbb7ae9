# SPDX-License-Identifier: Apache-2.0
"""The model package: a model with everything needed to serve, judge and monitor it.

Layout::

    <package>/
      1/                        SavedModel; preprocessing is inside the graph
      onnx/                     the same graph as ONNX, where it could be converted
        model.onnx              what the model server runs
        onnx.json               its inputs, output and classes, and how it was compared
      model.json                what `ModelPackage` describes
      reference/
        reference.parquet       bounded sample of the training features, with `prediction`
        golden.parquet          a few rows with their expected `prediction`: the smoke test
        request.json            a V1 request that works; written when the model is published

The SavedModel's signature `serving_default` takes one 1-D tensor per feature, named after it
(float32 for `float`, `int` and `bool`, string for `string`; NaN and "" are missing values), and
returns 1-D `probability` (binary: of the positive class), 2-D `probabilities` in the order of
`classes` (multiclass) or 1-D `value` (regression). The ONNX graph takes and returns the same.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import read_json, write_json

CONTRACT_VERSION = 1
TASKS = ("binary", "multiclass", "regression")
FEATURE_TYPES = ("float", "int", "bool", "string")
SAVED_MODEL = "1"
ONNX = "onnx/model.onnx"
ONNX_ABOUT = "onnx/onnx.json"
EVALUATION = "evaluation.json"
REFERENCE = "reference/reference.parquet"
GOLDEN = "reference/golden.parquet"
REQUEST = "reference/request.json"
PREDICTION = "prediction"
OUTPUTS = {"binary": "probability", "multiclass": "probabilities", "regression": "value"}


@dataclass
class Feature:
    """One input of the model: its name and one of `FEATURE_TYPES`."""

    name: str
    type: str


@dataclass
class ModelPackage:
    """The content of `model.json`.

    Attributes:
        name: Model name, also the name it is served under.
        task: One of `TASKS`.
        label: Label column.
        features: Model inputs, in order.
        classes: Multiclass only: the classes in the order of `probabilities`.
        entities: Entity key columns; accepted and logged with requests, not fed to the model
            unless they are features too.
        timestamp: Event-time column; accepted and logged, not fed to the model.
        feature_service: Feast feature service, or empty.
        version: Set by `publish_model`; empty before.
        schema_fingerprint: sha256 of the schema the data was validated against.
        dataset_fingerprint: Fingerprint of the training dataset.
        training_window: `since`, `until` (ISO 8601; only of data with a timestamp) and `rows`.
        trained_at: When it was trained, ISO 8601.
        git_commit: Commit of the code that trained it, or empty.
        image: Image that trained it, by its digest where it was named by it, or empty.
        metrics: Metrics of training, by name.
        hyperparameters: What the model was built and trained with.
        framework: Versions that matter for serving, for example `{"tensorflow": "2.21.0"}`.
    """

    name: str
    task: str
    label: str
    features: list[Feature]
    classes: list[str] = field(default_factory=list)
    entities: list[str] = field(default_factory=list)
    timestamp: str = ""
    feature_service: str = ""
    version: str = ""
    schema_fingerprint: str = ""
    dataset_fingerprint: str = ""
    training_window: dict[str, Any] = field(default_factory=dict)
    trained_at: str = ""
    git_commit: str = ""
    image: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    framework: dict[str, str] = field(default_factory=dict)
    contract_version: int = CONTRACT_VERSION

    @property
    def output(self) -> str:
        """Name of the SavedModel output that holds the prediction."""
        return OUTPUTS[self.task]

    @property
    def feature_names(self) -> list[str]:
        """The model's inputs, in order."""
        return [feature.name for feature in self.features]

    @property
    def numbers(self) -> list[str]:
        """Those that go in as numbers, in order."""
        return [feature.name for feature in self.features if feature.type != "string"]

    @property
    def texts(self) -> list[str]:
        """Those that go in as texts, in order."""
        return [feature.name for feature in self.features if feature.type == "string"]


def write_model_json(package: ModelPackage, directory: str | Path) -> None:
    """Writes `model.json` into a package directory."""
    write_json(Path(directory) / "model.json", asdict(package))


def read_model_json(directory: str | Path) -> ModelPackage:
    """Reads `model.json` of a package.

    Raises:
        InputError: If there is none, it is incomplete, or it was written by a newer contract.
    """
    path = Path(directory) / "model.json"
    if not path.is_file():
        raise InputError(f"{directory} is not a model package: it holds no model.json.")
    document = read_json(path)
    found = document.get("contract_version")
    if not isinstance(found, int) or found > CONTRACT_VERSION:
        raise InputError(
            f"The model package {directory} has contract version {found}, this kfloop reads up to "
            f"{CONTRACT_VERSION}; use the kfloop release that wrote it or a newer one."
        )
    # What a later release adds within this contract version is not for this one to read.
    known = {entry.name for entry in fields(ModelPackage)}
    document = {key: value for key, value in document.items() if key in known}
    try:
        features = [Feature(**feature) for feature in document.pop("features")]
        return ModelPackage(features=features, **document)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is incomplete or damaged: {error}.") from error
