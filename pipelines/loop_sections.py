# SPDX-License-Identifier: Apache-2.0
"""The sections of `loop.yaml` about data: what each key means, its default, and what it may be.

The others are in `loop_training` and `loop_serving`.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from kfloop.components.contracts.environment import REFERENCE, holds_password


def _moment(value: str) -> str:
    if value:
        try:
            datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError("write a date or time like 2013-06-01") from error
    return value


def _repository(value: str) -> str:
    scheme, separator, _ = value.partition("://")
    if separator and scheme not in ("gs", "file"):
        raise ValueError(
            f"a feature repository is not read from {scheme}://; give a directory, also of a "
            "mounted volume, or gs://"
        )
    return value


DATABASES = ("postgresql", "postgres", "sqlite", "mysql", "mariadb", "oracle", "mssql")
Moment = Annotated[str, AfterValidator(_moment)]
Name = Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=40)]


class Section(BaseModel):
    """Strict about keys, which are checked by pydantic."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Source(Section):
    """Where one table comes from.

    Attributes:
        uri: A Parquet, CSV or JSON-lines file, or a directory or glob of them, at a path, gs:// or
            s3://; relative paths are relative to the loop file. With `query`, SQLAlchemy's URL of
            a database. `${NAME}` stands for an environment variable of the step that reads it: the
            place for a password, or for the whole URL.
        format: `parquet`, `csv` or `jsonl`; empty means by the file's extension.
        timestamp: Column by which `since` and `until` choose rows; empty for tables without time.
        query: One SELECT in the database's own SQL; empty for files.
    """

    uri: str
    format: Literal["", "parquet", "csv", "jsonl"] = ""
    timestamp: str = ""
    query: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> "Source":
        scheme = self.uri.partition("://")[0].partition("+")[0] if "://" in self.uri else ""
        if holds_password(self.uri):
            raise ValueError(
                "uri holds a password; put it into an environment variable and write ${NAME}"
            )
        if "$" in REFERENCE.sub("", self.uri):
            raise ValueError("uri names an environment variable; write it like ${NAME}")
        if self.query and self.format:
            raise ValueError("a source with a query is rows; leave out format")
        if self.query and (
            scheme in ("gs", "s3", "file") or not (scheme or self.uri.startswith("${"))
        ):
            raise ValueError("query needs the URL of a database, like sqlite:/// or ${NAME}")
        if not self.query and scheme in DATABASES:
            raise ValueError(f"{scheme}:// is a database; give it a query")
        if not self.query and scheme not in ("", "gs", "s3", "file"):
            raise ValueError(
                f"{scheme}:// is not supported; use a path, gs://, s3:// or a database"
            )
        return self


class Examples(Section):
    """What is predicted, one row per prediction.

    Attributes:
        query: DuckDB SQL over the sources, as text or as a path that ends in `.sql`.
        label: Column to predict.
        timestamp: Column with the time of prediction; empty if there is none.
        entities: Key columns: they join features, travel with requests, and are no model inputs
            unless `training.features` names them.
        keys: Columns that identify a row when its label arrives later; the entities and the
            timestamp unless given.
    """

    query: str
    label: str
    timestamp: str = ""
    entities: list[str] = []
    keys: list[str] = []


class Features(Section):
    """The Feast repository that adds features to the examples.

    Attributes:
        repo: Directory of the repository, or its gs:// address.
        service: Name of the feature service.
        tables: SQL (text or path) for each Parquet table its file sources read.
    """

    repo: Annotated[str, AfterValidator(_repository)]
    service: str
    tables: dict[str, str] = {}


class Split(Section):
    """What the model is trained and evaluated on.

    Attributes:
        method: `time` (the newest rows evaluate), `hash` (a key's hash decides, for good) or
            `group` (whole keys until `fraction` is reached).
        since: Start of the training data; empty means the beginning.
        at: Start of the evaluation data; empty means the last `fraction` of the rows.
        until: End of the evaluation data; empty means the end.
        fraction: Part of the rows used for evaluation when `at` is empty.
        key: Column for `hash` and `group`.
    """

    method: Literal["time", "hash", "group"] = "time"
    since: Moment = ""
    at: Moment = ""
    until: Moment = ""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    key: str = ""


class Validation(Section):
    """When data is refused.

    Attributes:
        minimum_rows: Fewest rows in the training part and in the evaluation part.
        data_schema: A reviewed TFDV schema (text proto) that wins over the inferred one; `schema`
            in the file.
        rules: Rules over the statistics, for example `distance.mean < 3000`.
        drift: Whether drift of the evaluation part is only reported, fails the run, or is off.
    """

    minimum_rows: Annotated[int, Field(ge=1)] = 100
    data_schema: Annotated[str, Field(alias="schema")] = ""
    rules: list[str] = []
    drift: Literal["report", "fail", "off"] = "report"
