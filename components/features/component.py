# SPDX-License-Identifier: Apache-2.0
"""KFP components of the features family."""

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("features"), install_kfp_package=False)
def apply_feature_repo(
    feature_tables: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Output[dsl.Artifact],
    repo_uri: str = "",
    feature_service: str = "",
    repo: dsl.Input[dsl.Artifact] = None,
):
    """Copies a Feast repository, puts feature tables into it and applies its definitions.

    Args:
        feature_tables: Tables; each becomes `data/<table>/` of the repository.
        feature_repo: The applied repository, with its registry. Metadata: `project`,
            `feature_service`, `feature_services`, `feature_views`, `entities`, `tables`,
            `fingerprint`.
        repo_uri: Directory or gs:// address of the Feast repository; empty for a loop without
            features.
        feature_service: Feature service that must exist; empty for none.
        repo: The Feast repository as an artifact, in place of `repo_uri`.
    """
    from kfloop.components.features.steps import apply

    uri = repo.path if repo else repo_uri
    feature_repo.metadata.update(
        apply(feature_tables.path, feature_repo.path, uri, feature_service)
    )


@dsl.component(base_image=image("features"), install_kfp_package=False)
def retrieve_training_set(
    examples: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Input[dsl.Artifact],
    training_set: dsl.Output[dsl.Dataset],
    timestamp: str,
    feature_service: str = "",
):
    """Joins to each example the features that were known at its time.

    Args:
        examples: Rows with the entity keys and what on-demand views ask of a request.
        feature_repo: The applied repository.
        training_set: Every example once, in its place, with its columns and the features.
            Metadata: the dataset's, `feature_service`, `features`, `missing`.
        timestamp: Column of the examples: the moment that each one is about.
        feature_service: Features to join; empty passes the examples through.
    """
    from kfloop.components.features.steps import retrieve

    training_set.metadata.update(
        retrieve(examples.path, feature_repo.path, training_set.path, timestamp, feature_service)
    )


@dsl.component(base_image=image("features"), install_kfp_package=False)
def materialize_features(
    feature_repo: dsl.Input[dsl.Artifact],
    materialized: dsl.Output[dsl.Artifact],
    until: str = "",
    since: str = "",
):
    """Fills the online store of a repository with each entity's newest values.

    Args:
        feature_repo: The applied repository.
        materialized: Its copy with online store and registry. Metadata: `feature_views`,
            `since`, `until`, `intervals`.
        until: Values before this time, ISO 8601; empty for all there are.
        since: Values from this time on, ISO 8601; empty to go on where the registry says that the
            last one ended.
    """
    from kfloop.components.features.steps import materialize

    materialized.metadata.update(materialize(feature_repo.path, materialized.path, since, until))


@dsl.component(base_image=image("features"), install_kfp_package=False)
def push_features(
    dataset: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Input[dsl.Artifact],
    pushed: dsl.Output[dsl.Artifact],
    push_source: str,
    to: str = "online",
):
    """Writes new feature values into the online store, the offline store, or both.

    Args:
        dataset: Rows with entity keys, features and time, named as in the feature view.
        feature_repo: The repository, applied or materialized.
        pushed: Its copy with the new values. Metadata: `push_source`, `rows`, `offline`,
            `online`, `outdated`.
        push_source: Push source of the repository; every view that reads it gets the rows.
        to: online, offline or both.
    """
    from kfloop.components.contracts.feast_import import import_feast

    import_feast()
    from kfloop.components.features.push import push

    pushed.metadata.update(push(dataset.path, feature_repo.path, pushed.path, push_source, to))


@dsl.component(base_image=image("features"), install_kfp_package=False)
def retrieve_online(
    examples: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Input[dsl.Artifact],
    online: dsl.Output[dsl.Dataset],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    feature_service: str = "",
    at: str = "",
    limit: int = 1000,
) -> str:
    """Reads the online store as a model server does and compares it with the training join.

    Args:
        examples: Rows with the entity keys and what on-demand views ask of a request.
        feature_repo: The materialized repository.
        online: The examples with the features that are served.
        decision: Whether training and serving agree; `no_data` when nothing could be compared.
        page: The decision as a page.
        feature_service: Features to read; empty for a loop without features.
        at: The moment to serve, ISO 8601; empty for the end of what was materialized.
        limit: How many examples, from the last ones; 0 for all.

    Returns:
        `pass`, `fail` or `no_data`.
    """
    from kfloop.components.contracts.feast_import import import_feast

    import_feast()
    from kfloop.components.features.online import retrieve

    told, decided = retrieve(
        *(examples.path, feature_repo.path, online.path, decision.path, page.path),
        *(feature_service, at, limit),
    )
    online.metadata.update(told)
    decision.metadata.update(decided)
    return decided["decision"]


@dsl.component(base_image=image("features"), install_kfp_package=False)
def detect_serving_skew(
    log: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Input[dsl.Artifact],
    decision: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    timestamp: str,
    feature_service: str = "",
    maximum_share: float = 0.01,
    limit: int = 5000,
) -> str:
    """Compares the feature values in requests with the store's at the requests' times.

    Args:
        log: Rows of the inference log, with the entity keys.
        feature_repo: The applied repository, with tables that reach the log's window.
        decision: The decision: `fail` when a feature differs in too many rows.
        page: Every feature with its share of rows that differ.
        timestamp: Column of the log: the moment that each row is about.
        feature_service: The features; empty for a loop without any.
        maximum_share: Largest share of rows, 0 to 1, in which a feature may differ.
        limit: Most rows, from the newest; 0 compares all.

    Returns:
        `pass`, `fail` or `no_data`.
    """
    from kfloop.components.contracts.feast_import import import_feast

    import_feast()
    from kfloop.components.features.serving_skew import detect_serving_skew as detect

    outcome, metadata = detect(
        log.path,
        feature_repo.path,
        decision.path,
        page.path,
        timestamp,
        feature_service,
        maximum_share,
        limit,
    )
    decision.metadata.update(metadata)
    return outcome
