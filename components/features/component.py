"""The features family as KFP components."""

from kfp import dsl

from kfloop.components.images import image


@dsl.component(base_image=image("features"), install_kfp_package=False)
def apply_feature_repo(
    feature_tables: dsl.Input[dsl.Dataset],
    feature_repo: dsl.Output[dsl.Artifact],
    repo_uri: str = "",
    feature_service: str = "",
):
    """Copies a Feast repository, puts feature tables into it and applies its definitions.

    Args:
        feature_tables: Tables; each becomes `data/<table>/` of the repository.
        feature_repo: The applied repository, with its registry. Metadata: `project`,
            `feature_service`, `feature_services`, `feature_views`, `entities`, `tables`,
            `fingerprint`.
        repo_uri: Directory of the Feast repository; empty for a loop without features.
        feature_service: Feature service that must exist; empty for none.
    """
    from kfloop.components.features.repository import apply

    feature_repo.metadata.update(
        apply(feature_tables.path, feature_repo.path, repo_uri, feature_service)
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
    from kfloop.components.features.training_set import retrieve

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
            `since`, `until`.
        until: Values before this time, ISO 8601; empty for all there are.
        since: Values from this time on, ISO 8601; empty for no start.
    """
    from kfloop.components.features.materialize import materialize

    materialized.metadata.update(materialize(feature_repo.path, materialized.path, since, until))
