# SPDX-License-Identifier: Apache-2.0
"""What is told of a request that cannot be used."""

import pytest

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.model_package import Feature, ModelPackage
from kfloop.serving.inputs import Wanted, from_instances


def test_a_model_of_hundreds_of_features_is_not_listed_whole() -> None:
    features = [Feature(f"f{number}", "float") for number in range(400)]
    wanted = Wanted(ModelPackage("wide", "binary", "y", features))
    with pytest.raises(InputError) as error:
        from_instances({"instances": [{"f0": 1.0, "g": 2.0}] * 1000}, wanted)
    told = str(error.value)
    assert told.startswith(
        "Row 0 has the unknown key 'g'; row 0 lacks 'f1', 'f2', 'f3', 'f4', 'f5'"
    )
    assert told.endswith("f38, f39 and 360 others.")
    assert len(told) < 1000
