# SPDX-License-Identifier: Apache-2.0
"""TensorFlow Model Analysis on rows like those of benchmarks/evaluation.py.

Run with the python of an environment that holds `tensorflow-model-analysis`::

    PYTHON benchmarks/evaluation_tfma.py [--rows 20000] [--intervals]

Eight metrics over all rows and in 6 slices. Prints its import, its time and its peak memory.
"""

import argparse
import os
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

CONFIG = """
model_specs { label_key: "label" prediction_key: "prediction" }
slicing_specs {}
slicing_specs { feature_keys: ["part"] }
metrics_specs {
  metrics { class_name: "AUC" }
  metrics { class_name: "AUCPrecisionRecall" }
  metrics { class_name: "BinaryAccuracy" }
  metrics { class_name: "Precision" }
  metrics { class_name: "Recall" }
  metrics { class_name: "BinaryCrossentropy" }
  metrics { class_name: "Calibration" }
  metrics { class_name: "ExampleCount" }
}
options { compute_confidence_intervals { value: %s } }
"""


def main() -> None:
    """Measures one analysis."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--intervals", action="store_true", help="confidence intervals too")
    options = parser.parse_args()
    started = time.perf_counter()
    import numpy as np
    import pandas as pd
    import tensorflow_model_analysis as tfma
    from google.protobuf import text_format
    from tensorflow_model_analysis.proto import config_pb2

    imported = time.perf_counter() - started
    random = np.random.default_rng(0)
    label = (random.random(options.rows) < 0.3).astype(float)
    score = 1 / (1 + np.exp(1 - label - random.normal(size=options.rows)))
    part = [f"p{number}" for number in random.integers(0, 6, options.rows)]
    frame = pd.DataFrame({"label": label, "prediction": score, "part": part})
    config = text_format.Parse(CONFIG % str(options.intervals).lower(), config_pb2.EvalConfig())
    started = time.perf_counter()
    slices = len(tfma.analyze_raw_data(frame, config).slicing_metrics)
    took = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{options.rows:,} rows, {slices} slices, intervals {options.intervals}: {took:.1f} s, "
        f"import {imported:.1f} s, peak {peak:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
