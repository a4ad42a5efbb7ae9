# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from pathlib import Path

import pytest

from kfloop.components.contracts.decision import Decision, Reason, write_decision
from kfloop.components.contracts.errors import InputError
from kfloop.components.validation.require import require_pass


def test_a_failed_decision_is_told_with_every_reason_that_did_not_hold(tmp_path: Path) -> None:
    reasons = [
        Reason("rows", "rows", 5, 1, True, "the data has 5 rows"),
        Reason("column", "a", None, None, False, "column 'a' is missing"),
        Reason("column", "b", None, None, False, "column 'b' is missing"),
    ]
    write_decision(Decision("data validation", "fail", reasons), tmp_path / "d")
    with pytest.raises(InputError) as raised:
        require_pass(tmp_path / "d")
    assert str(raised.value) == (
        "Data validation failed: column 'a' is missing; column 'b' is missing."
    )


def test_no_baseline_is_no_pass(tmp_path: Path) -> None:
    write_decision(Decision("data validation", "no_baseline"), tmp_path / "d")
    with pytest.raises(InputError, match="its decision is no_baseline"):
        require_pass(tmp_path / "d")


def test_the_gate_imports_nothing_heavy() -> None:
    code = (
        "import sys; import kfloop.components.validation.require; "
        "print({'tensorflow', 'numpy', 'pyarrow', 'google'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_reading_statistics_and_schemas_needs_no_tensorflow() -> None:
    code = (
        "import sys; import kfloop.components.validation.validate; "
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
