# SPDX-License-Identifier: Apache-2.0
"""TensorFlow is imported when TFDV uses it, and not before."""

import subprocess
import sys

SCRIPT = """
import sys
import pyarrow as pa
from kfloop.components.validation.tfdv import StatisticsStream, tfdv

stream = StatisticsStream()
stream.add(pa.record_batch({"x": [1.0, 2.0, 3.0], "colour": ["red", "red", "blue"]}))
found = stream.statistics()
schema = tfdv().infer_schema(found)
print(len(tfdv().validate_statistics(found, schema).anomaly_info), "tensorflow" in sys.modules)
tfdv().write_stats_text(found, sys.argv[1])
print(tfdv().load_stats_text(sys.argv[1]) == found, "tensorflow" in sys.modules)
import tensorflow as tf
from tensorflow_data_validation.utils import stats_util
print(stats_util.tf.io.gfile is tf.io.gfile, stats_util.tf.compat.as_text(b"a"))
"""


def test_tensorflow_is_imported_once_it_is_used(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "stats.pbtxt")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["0 False", "True True", "True a"]
