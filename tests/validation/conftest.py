# SPDX-License-Identifier: Apache-2.0
"""Data sets that are written and judged like a pipeline does it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kfloop.components.contracts.dataset import write_dataset
from kfloop.components.contracts.decision import Decision
from kfloop.components.validation.findings import Limits
from kfloop.components.validation.schema import infer_schema
from kfloop.components.validation.statistics import compute_statistics
from kfloop.components.validation.summary import Summary, read_statistics, summarize
from kfloop.components.validation.validate import validate_data

START = datetime(2020, 1, 1)


def sales(rows: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Returns columns of every usual kind; `sold` is the label."""
    random = np.random.default_rng(seed)
    return {
        "at": pa.array([START + timedelta(minutes=i) for i in range(rows)], pa.timestamp("us")),
        "price": pa.array(random.lognormal(size=rows), mask=random.random(rows) < 0.05),
        "stock": pa.array(random.poisson(3, rows)),
        "shop": pa.array(random.choice(["north", "south", "east"], rows)),
        "receipt": pa.array([f"r{seed}-{i}" for i in range(rows)]),
        "sold": pa.array(random.random(rows) < 0.3),
    }


@dataclass
class Workbench:
    """A directory with statistics and schemas, each known by a short name."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def measure(self, columns: Any, name: str = "now", **window: Any) -> Summary:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        write_dataset(table, self.path(f"{name}-data"))
        compute_statistics(self.path(f"{name}-data"), self.path(name), **window)
        return self.summary(name)

    def summary(self, name: str) -> Summary:
        return summarize(read_statistics(self.path(name)))

    def infer(self, name: str = "before", label: str = "sold") -> str:
        infer_schema(self.path(name), self.path("schema"), label)
        return self.path("schema").read_text()

    def validate(
        self, name: str = "now", baseline: str = "", serving: str = "", **settings: Any
    ) -> Decision:
        limits = {
            key: settings.pop(key) for key in list(settings) if key in Limits.__dataclass_fields__
        }
        return validate_data(
            self.path(name),
            self.path("schema"),
            self.path("anomalies"),
            self.path("decision"),
            self.path("page.html"),
            label=settings.pop("label", "sold"),
            baseline=self.path(baseline) if baseline else "",
            serving=self.path(serving) if serving else "",
            limits=Limits(**limits),
            **settings,
        )

    def judge(self, columns: Any, **settings: Any) -> Decision:
        """Validates new data against the schema of, and with the baseline, `before`."""
        self.measure(columns)
        return self.validate("now", "before", **settings)


@pytest.fixture(scope="session")
def _before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bench = Workbench(tmp_path_factory.mktemp("before"))
    bench.measure(sales(), "before")
    bench.infer()
    return bench.root


@pytest.fixture
def empty_bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def bench(_before: Path, tmp_path: Path) -> Workbench:
    """A workbench with the statistics `before` and the schema of 2,000 sales."""
    for name in ("before", "schema"):
        (tmp_path / name).write_bytes((_before / name).read_bytes())
    return Workbench(tmp_path)


@pytest.fixture
def sales_of() -> Callable[..., dict[str, Any]]:
    return sales
