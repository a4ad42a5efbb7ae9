# SPDX-License-Identifier: Apache-2.0
"""What to read of a Feast repository for a model, worked out once when the server starts.

Only the registry and the online store of the repository are used, so the packages of its offline
store need not be here. The functions of on-demand views come out of the registry: whoever can
write the registry decides what code runs here.
"""

import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from feast import FeatureService, FeatureStore, FeatureView, OnDemandFeatureView, ValueType
from feast.errors import FeastError, FeatureServiceNotFoundException
from feast.feature_view import DUMMY_ENTITY_ID
from feast.feature_view_projection import FeatureViewProjection
from feast.field import Field
from feast.repo_config import RepoConfig

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import ModelPackage

CONFIG = "feature_store.yaml"
UNSET = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
# Feast's types by what a model can take.
TYPES = {
    ValueType.STRING: "string",
    ValueType.INT32: "int",
    ValueType.INT64: "int",
    ValueType.FLOAT: "float",
    ValueType.DOUBLE: "float",
    ValueType.BOOL: "bool",
}


@dataclass(frozen=True)
class Key:
    """A join key: its name in the view, the request's column, and Feast's type."""

    name: str
    column: str
    type: ValueType


@dataclass(frozen=True)
class View:
    """What to read of one feature view.

    Attributes:
        name: Its name.
        table: Feast's definition.
        keys: Its join keys; none for a view without entities.
        features: The features to read.
        ttl: How old a value may be; zero or None for any age.
    """

    name: str
    table: FeatureView
    keys: tuple[Key, ...]
    features: tuple[str, ...]
    ttl: timedelta | None


@dataclass(frozen=True)
class Computed:
    """An on-demand view: Feast's definition, the columns it gets, the features it gives."""

    name: str
    definition: OnDemandFeatureView
    inputs: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to read and compute for a model.

    Attributes:
        config: Of the repository.
        views: To read.
        computed: To compute from what was read, in any order.
        features: Which of the model's features come out of it.
        keys: Columns that a request must carry for it, with their type.
        inputs: The same, for what on-demand views ask of a request.
    """

    config: RepoConfig
    views: tuple[View, ...]
    computed: tuple[Computed, ...]
    features: frozenset[str]
    keys: dict[str, str]
    inputs: dict[str, str]


def make_plan(repo: str | Path, package: ModelPackage) -> Plan:
    """Reads the registry and works out what the model needs of it.

    Raises:
        InputError: If the repository cannot be read, has not the model's feature service, or
            the service does not fit the model.
    """
    repo = Path(repo).absolute()
    if not package.feature_service:
        raise InputError(
            f"The model {package.name} was trained without a feature service, so there is nothing "
            f"to look up in {repo}; serve it without a feature repository."
        )
    config = _config(repo)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations in Feast itself
            store = FeatureStore(repo_path=str(repo), config=config)
            service = store.get_feature_service(package.feature_service)
            found = _plan(store, service, config, package)
    except FeatureServiceNotFoundException as error:
        raise InputError(
            f"The model {package.name} needs the feature service {package.feature_service!r}, "
            f"which the registry of {repo} lacks; apply the repository it was trained with."
        ) from error
    except FeastError as error:
        raise InputError(f"The feature repository {repo} cannot be read: {error}.") from error
    _require_fit(found, service, package)
    return found


def _config(repo: Path) -> RepoConfig:
    file = repo / CONFIG
    if not file.is_file():
        raise InputError(f"{repo} is not a feature repository: it holds no {CONFIG}.")
    text = os.path.expandvars(file.read_text(encoding="utf-8"))
    if unset := sorted({braced or plain for braced, plain in UNSET.findall(text)}):
        raise InputError(
            f"{file} asks the environment for {', '.join(unset)}; set it for the model server, "
            "for example from a Secret."
        )
    try:
        document: dict[str, Any] = yaml.safe_load(text)
        document["offline_store"] = {"type": "dask"}  # never used: it is part of Feast's core
        config = RepoConfig(**document)
    except (yaml.YAMLError, TypeError, ValueError, FeastError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"{file} is no configuration that Feast accepts: {told}.") from error
    config.repo_path = repo
    if config.online_store is None:
        raise InputError(f"{file} names no online store; there is nothing to look features up in.")
    return config


def _plan(
    store: FeatureStore, service: FeatureService, config: RepoConfig, package: ModelPackage
) -> Plan:
    on_demand = {view.name: view for view in store.list_on_demand_feature_views()}
    tables = {
        view.name: view
        for view in (*store.list_feature_views(), *store.list_stream_feature_views())
    }
    wanted = set(package.feature_names)
    asked: dict[str, tuple[FeatureViewProjection, set[str]]] = {}
    computed: list[Computed] = []
    inputs: dict[str, str] = {}
    for projection in service.feature_view_projections:
        given = {field.name for field in projection.features} & wanted
        if not given:
            continue
        if projection.name not in on_demand:
            asked.setdefault(projection.name_to_use(), (projection, set()))[1].update(given)
            continue
        view = on_demand[projection.name]
        for read, so_far in _sources(view, asked):
            so_far.update(read)
        columns = _request_inputs(view)
        inputs |= columns
        sources = [
            field.name
            for source in view.source_feature_view_projections.values()
            for field in source.features
        ]
        computed.append(Computed(view.name, view, (*columns, *sources), tuple(sorted(given))))
    views = tuple(
        _view(tables[projection.name], projection, names) for projection, names in asked.values()
    )
    keys = {key.column: TYPES.get(key.type, "") for view in views for key in view.keys}
    direct = {name for view in views for name in view.features}
    given = {*direct, *(name for view in computed for name in view.features)} & wanted
    return Plan(config, views, tuple(computed), frozenset(given), keys, inputs)


def _sources(
    view: OnDemandFeatureView, asked: dict[str, tuple[FeatureViewProjection, set[str]]]
) -> Iterator[tuple[set[str], set[str]]]:
    """Yields for each view that an on-demand view reads: what it reads, what is asked so far."""
    if view.write_to_online_store or view.aggregations:
        raise InputError(
            f"The on-demand view {view.name!r} is written to the online store or aggregates; "
            "the model server computes on-demand views when they are read."
        )
    for source in view.source_feature_view_projections.values():
        fields = asked.setdefault(source.name_to_use(), (source, set()))[1]
        yield {field.name for field in source.features}, fields


def _request_inputs(view: OnDemandFeatureView) -> dict[str, str]:
    return {
        field.name: _type_of(field, f"the on-demand view {view.name!r} asks of a request")
        for source in view.source_request_sources.values()
        for field in source.schema
    }


def _view(table: FeatureView, projection: FeatureViewProjection, features: set[str]) -> View:
    renamed = projection.join_key_map
    keys = tuple(
        Key(field.name, renamed.get(field.name, field.name), field.dtype.to_value_type())
        for field in table.entity_columns
        if field.name != DUMMY_ENTITY_ID
    )
    for key in keys:
        if TYPES.get(key.type, "float") == "float":
            raise InputError(
                f"The join key {key.name!r} of the feature view {table.name!r} has the type "
                f"{key.type.name}; the model server looks up texts, whole numbers and booleans."
            )
    return View(projection.name_to_use(), table, keys, tuple(sorted(features)), table.ttl)


def _type_of(field: Field, what: str) -> str:
    kind = TYPES.get(field.dtype.to_value_type(), "")
    if not kind:
        raise InputError(f"{field.name!r}, which {what}, has the type {field.dtype}.")
    return kind


def _require_fit(plan: Plan, service: FeatureService, package: ModelPackage) -> None:
    if not plan.features:
        raise InputError(
            f"The feature service {service.name!r} has none of the features of the model "
            f"{package.name}; apply the repository it was trained with."
        )
    fields = {
        field.name: field
        for projection in service.feature_view_projections
        for field in projection.features
    }
    needs = plan.keys | plan.inputs
    for feature in package.features:
        key = needs.get(feature.name, "")
        if key and (key == "string") != (feature.type == "string"):
            raise InputError(
                f"{feature.name!r} is {feature.type} for the model {package.name} and {key} for "
                f"the look-up of the feature service {service.name!r}; rename one of them."
            )
        if feature.name not in plan.features:
            continue
        kind = _type_of(fields[feature.name], f"the model {package.name} takes")
        if (kind == "string") != (feature.type == "string"):
            raise InputError(
                f"The model {package.name} takes {feature.name!r} as {feature.type}, and the "
                f"feature service {service.name!r} gives it as {kind}; apply the repository it "
                "was trained with."
            )
