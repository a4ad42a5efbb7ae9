# SPDX-License-Identifier: Apache-2.0
"""A model package as a KServe model: parse, look up, run and answer, in batches off the event loop.

KServe runs `predict` on the event loop. All work is done by `Batcher`'s threads: the requests that
came together are looked up together and go through the graph as one batch.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kserve
import numpy as np
import orjson
from kserve import InferOutput, InferRequest, InferResponse
from kserve.errors import InferenceError, InvalidInput, ModelNotReady
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, get_current_span

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.feast_import import import_feast
from kfloop.components.contracts.inference_log import version_label
from kfloop.components.contracts.model_package import ModelPackage, read_model_json
from kfloop.components.contracts.runtime import load_graph
from kfloop.serving import tracing
from kfloop.serving.batching import Batcher
from kfloop.serving.inputs import (
    NOT_SENT,
    Rows,
    Wanted,
    from_instances,
    from_tensors,
    numbers_of,
    require_form,
    texts_of,
)
from kfloop.serving.metrics import ModelMetrics
from kfloop.serving.payloads import FEATURES_HEADER

DATATYPES = {"float": "FP32", "int": "INT64", "bool": "BOOL", "string": "BYTES"}
# Two batches at a time: one is parsed while the graph, which needs no interpreter, runs the other.
WORKERS = 2
REQUESTS_PER_BATCH = 64


class UnavailableError(ModelNotReady):
    """Answered with 503: the online store does not answer."""

    expected = True

    def __init__(self, reason: str) -> None:
        super().__init__("")
        self.error_msg = self.reason = reason


class ModelError(InferenceError):
    """Answered with 500: the request was right, and the model or an on-demand view is not."""


@dataclass
class Question:
    """A request on its way through the model.

    Attributes:
        payload: V1 body, parsed or not, or V2 request.
        request_id: Its id.
        trace: Its trace context, if it has one.
        return_features: Whether the answer shall tell the features, if any were looked up.
    """

    payload: Any
    request_id: str
    trace: Context | None
    return_features: bool


@dataclass
class Checked:
    """A question whose body is right, and what the look-up said of it."""

    question: Question
    rows: Rows
    missing: list[dict[str, Any]]


class PackageModel(kserve.Model):
    """A model package as a KServe model.

    Attributes:
        package: What `model.json` says.
        version: Version put into every answer.
        labels: Its labels in metrics.
    """

    def __init__(
        self, name: str, directory: str, feature_repo: str = "", runtime: str = ""
    ) -> None:
        """Reads `model.json`.

        Args:
            name: Name on the endpoint path.
            directory: The model package.
            feature_repo: Applied Feast repository to look features up in; empty when requests
                carry them.
            runtime: See `load_graph`.

        Raises:
            InputError: If the package cannot be read.
        """
        super().__init__(name)
        self.package: ModelPackage = read_model_json(directory)
        self.version = version_label(self.package.version)
        self.labels = (name, self.version)
        self._directory = directory
        self._feature_repo = feature_repo
        self._runtime = runtime
        self._batcher: Batcher[Question, Any] = Batcher(self._run, WORKERS, REQUESTS_PER_BATCH)

    def load(self) -> bool:
        """Loads the graph and the feature repository, and runs the model once.

        So the first request finds it warm. A store that does not answer now does not keep the
        model from starting: requests that need it get 503 until it does.

        Raises:
            InputError: If the package or the repository cannot be used.
        """
        self._features: Any = None
        wanted = Wanted(self.package)
        if self._feature_repo:
            # Importing Feast takes seconds and memory; without a repository nobody pays for it.
            import_feast()
            from kfloop.serving import features

            self._features = features.OnlineFeatures(self._feature_repo, self.package)
            self._unavailable = features.FeaturesUnavailableError
            self._on_demand_error = features.OnDemandError
            wanted = Wanted(self.package, self._features.features, self._features.needs)
        self._wanted = wanted
        self._metrics = ModelMetrics(self.name, self.package, self._directory)
        self._model = load_graph(self._directory, self.package, self._runtime)
        self._warm_up()
        self.ready = True
        return True

    def _warm_up(self) -> None:
        nothing = {name: [None] for name in self._wanted.types}
        self._model(
            numbers_of([nothing[name] for name in self._model.numbers]),
            texts_of([nothing[name] for name in self._model.texts]),
        )
        if self._features:
            keys = {"string": "", "int": 0, "bool": False}
            unknown = {name: [keys.get(kind)] for name, kind in self._wanted.needs.items()}
            try:
                self._features.look_up(unknown, [datetime.now(UTC)])
            except self._unavailable as error:
                print(f"The server starts without online features. {error}", flush=True)

    @property
    def runtime(self) -> str:
        """What runs the graph, once it is loaded."""
        return self._model.runtime

    def get_input_types(self) -> list[dict[str, Any]]:
        """Returns V2's metadata of the inputs."""
        return [
            {"name": feature.name, "datatype": DATATYPES[feature.type], "shape": [-1]}
            for feature in self.package.features
        ]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Returns V2's metadata of the outputs."""
        if self.package.task != "multiclass":
            return [{"name": self.package.output, "datatype": "FP32", "shape": [-1]}]
        size = len(self.package.classes)
        return [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, size]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ]

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        """Answers a V1 body or a V2 request."""
        told = headers or {}
        question = Question(
            payload,
            tracing.request_id(told),
            tracing.context_of(told),
            told.get(FEATURES_HEADER) == "1",
        )
        return await self._batcher.submit(question)

    def _run(self, questions: Sequence[Question]) -> list[Any]:
        """Answers a batch: for each question an answer, or what to raise."""
        answers: dict[int, Any] = {}
        checked: dict[int, Checked] = {}
        for place, question in enumerate(questions):
            try:
                checked[place] = Checked(question, self._parse(question.payload), [])
            except InputError as error:
                answers[place] = InvalidInput(str(error))
        need = {place: one for place, one in checked.items() if one.rows.gaps}
        answers |= self._fill(need)
        ready = {place: one for place, one in checked.items() if place not in answers}
        if ready:
            answers |= dict(zip(ready, self._answer(list(ready.values())), strict=True))
        return [answers[place] for place in range(len(questions))]

    def _parse(self, payload: Any) -> Rows:
        if isinstance(payload, InferRequest):
            require_form(payload)
            return from_tensors(payload.inputs, self._wanted)
        if isinstance(payload, bytes):  # a content type that KServe does not parse
            try:
                payload = orjson.loads(payload)
            except orjson.JSONDecodeError as error:
                raise InputError(f"The body is not JSON: {error}.") from error
        return from_instances(payload, self._wanted)

    def _fill(self, need: dict[int, Checked]) -> dict[int, Any]:
        """Looks up what requests left open, and returns what to raise for those that failed."""
        if not need:
            return {}
        try:
            self._look_up(list(need.values()))
        except self._unavailable as error:
            return dict.fromkeys(need, UnavailableError(str(error)))
        except self._on_demand_error as error:
            if len(need) == 1:
                return dict.fromkeys(need, ModelError(str(error)))
            # Not to let one request's values spoil the answers of the others.
            failed: dict[int, Any] = {}
            for place, one in need.items():
                failed |= self._fill({place: one})
            return failed
        return {}

    def _look_up(self, batch: list[Checked]) -> None:
        """Fills the gaps of requests; see `OnlineFeatures.look_up`."""
        now = datetime.now(UTC)
        places = [(one, row) for one in batch for row in one.rows.gaps]
        columns = {
            name: [one.rows.columns[name][row] for one, row in places]
            for name in self._wanted.needs
        }
        moments = [one.rows.moments[row] or now for one, row in places]
        traced = [one.question.trace for one in batch if one.question.trace is not None]
        links = [Link(get_current_span(context).get_span_context()) for context in traced[1:]]
        parent = traced[0] if traced else None
        with (
            tracing.TRACER.start_as_current_span(
                "look up online features", parent, SpanKind.CLIENT, links=links
            ),
            self._metrics.time_look_up(),
        ):
            try:
                found = self._features.look_up(columns, moments)
            finally:
                self._metrics.store_open.set(self._features.breaker.open)
        self._metrics.count_features(found.outcomes)
        for name in self._wanted.found:
            for (one, row), value in zip(places, found.columns[name], strict=True):
                column = one.rows.columns[name]
                if column[row] is NOT_SENT:
                    column[row] = value
        for view, outcomes in found.outcomes.items():
            for (one, row), outcome in zip(places, outcomes, strict=True):
                if outcome != "found":
                    one.missing.append({"row": row, "view": view, "why": outcome})

    def _answer(self, batch: list[Checked]) -> list[Any]:
        """Runs the model on the rows of all requests and returns their answers."""
        columns = {
            name: [value for one in batch for value in one.rows.columns[name]]
            for name in self.package.feature_names
        }
        scores = self._model(
            numbers_of([columns[name] for name in self._model.numbers]),
            texts_of([columns[name] for name in self._model.texts]),
        )
        self._metrics.batch_rows.observe(len(scores))
        answers: list[Any] = []
        start = 0
        for one in batch:
            part = scores[start : start + len(one.rows)]
            start += len(part)
            self._metrics.rows.observe(len(part))
            finite = np.isfinite(part).reshape(len(part), -1).all(1)
            if not finite.all():
                row = int(np.argmin(finite))
                answers.append(ModelError(f"The model's answer for row {row} is not a number."))
                continue
            self._metrics.predictions.observe(part)
            if isinstance(one.question.payload, InferRequest):
                answers.append(self._v2(one, part))
            else:
                answers.append(self._v1(one, part))
        return answers

    def _told(self, one: Checked) -> dict[str, Any]:
        """What an answer says beside the predictions."""
        told: dict[str, Any] = {}
        if one.missing:
            told["missing_features"] = sorted(one.missing, key=lambda entry: entry["row"])
        if one.question.return_features and one.rows.gaps:
            names = self.package.feature_names
            values = zip(*(one.rows.columns[name] for name in names), strict=True)
            told["features"] = [dict(zip(names, row, strict=True)) for row in values]
        return told

    def _v1(self, one: Checked, scores: Any) -> dict[str, Any]:
        if self.package.task != "multiclass":
            predictions = [{self.package.output: score} for score in scores.tolist()]
        else:
            classes = self.package.classes
            predictions = [
                {"label": label, "probabilities": dict(zip(classes, row, strict=True))}
                for label, row in zip(self._labels(scores), scores.tolist(), strict=True)
            ]
        told = self._told(one)
        return {"predictions": predictions} | ({"metadata": told} if told else {})

    def _v2(self, one: Checked, scores: Any) -> InferResponse:
        request: InferRequest = one.question.payload
        values = {self.package.output: scores}
        if self.package.task == "multiclass":
            values["label"] = np.array(self._labels(scores), dtype=object)
        outputs = []
        for kind in self.get_output_types():
            array = values[kind["name"]]
            output = InferOutput(kind["name"], list(array.shape), kind["datatype"])
            output.set_data_from_numpy(array, binary_data=request.use_binary_outputs)
            outputs.append(output)
        # V2's parameters are texts, numbers and booleans.
        told = {name: json.dumps(value) for name, value in self._told(one).items()}
        return InferResponse(
            response_id=request.id or one.question.request_id,
            model_name=self.name,
            infer_outputs=outputs,
            model_version=self.version,
            parameters=told or None,
            use_binary_outputs=request.use_binary_outputs,
            requested_outputs=request.request_outputs,
        )

    def _labels(self, scores: Any) -> list[str]:
        return [self.package.classes[index] for index in scores.argmax(1)]
