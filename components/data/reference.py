# SPDX-License-Identifier: Apache-2.0
"""The reference sample of a published model as a dataset."""

from typing import Any

import pyarrow.parquet as pq

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import REFERENCE, read_model_json
from kfloop.components.contracts.package_storage import package_directory


def load_reference(model_uri: str, path: str) -> dict[str, Any]:
    """Writes the training sample that travels with a model to `path`.

    Returns:
        The dataset's metadata.

    Raises:
        InputError: If there is no model package, or it carries no reference sample.
    """
    directory = package_directory(model_uri)
    package = read_model_json(directory)
    file = directory / REFERENCE
    if not file.is_file():
        raise InputError(f"The model package {model_uri} carries no {REFERENCE}; train it again.")
    return write_dataset(pq.read_table(file), path, package.timestamp)
