# SPDX-License-Identifier: Apache-2.0
"""Doubles of what a cluster has: an API server over HTTP, and KServe's controllers on it.

For tests of code that talks to Kubernetes, with the unmodified official client, no cluster and no
mock. Only the standard library is needed (pyarrow too, to answer from model packages)::

    with ApiServer(namespaces=["ml"]) as api, KServe(api, mode="Knative") as kserve:
        os.environ["KUBECONFIG"] = str(api.kubeconfig(tmp_path / "kubeconfig", "ml"))
        kserve.fail("s3://models/2", "crash_loop")     # this version will not come up
        api.faults.next(409, verb="patch")             # and the next patch is a conflict
        with kserve.running():                         # controllers in a thread ...
            deploy("s3://models/2")                    # ... while the code under test waits
        assert kserve.answered == {"1": 20}            # which versions answered requests

Without a thread, `kserve.step()` and `kserve.settle()` make the controllers act tick by tick, the
same way each time for a seed; `KServe(skip=0.3)` shuffles the order of events.

What it does not know, so that no test should lean on it: TLS, quotas and limits (a `quota` failure
is asked for, not counted), autoscaling (replicas are minReplicas), transformers and explainers
(stored, not run), storage (a storageUri is a name), other InferenceGraph routers than Splitter,
server-side apply inside lists (they are owned whole), and rules in CEL other than TrainJob's.
"""

from .errors import ApiError
from .failures import FAILURES
from .faults import Fault, Faults
from .kserve import KServe
from .models import Model, model_for
from .resources import Resource
from .server import ApiServer, Request
from .verbs import Admission

__all__ = [
    "FAILURES",
    "Admission",
    "ApiError",
    "ApiServer",
    "Fault",
    "Faults",
    "KServe",
    "Model",
    "Request",
    "Resource",
    "model_for",
]
