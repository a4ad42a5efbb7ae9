# SPDX-License-Identifier: Apache-2.0
"""The model server beside KServe's own ways, on the flights model, with requests of one row.

Run in the environment of the serving family, after `make run` and with the checkout's code on
PYTHONPATH as `kfloop`::

    python benchmarks/serving.py [--awake] [--soak SECONDS]

Each server is started alone on loopback, warmed up, and asked by a closed-loop client in a process
of its own. `CPU ms` is what the server's processes used per request: compare it on a busy machine.
A virtual CPU without work is given back to the host, and wakes up late and with cold caches; with
one request at a time that is most of the latency. `--awake` keeps them all from it by a loop of the
lowest priority each, as people do who measure or tune latency (`idle=poll`); for every server.
kfloop runs the graph by ONNX Runtime and by TensorFlow, so the package has to hold it as ONNX, as
training writes it by default. `serving_graph.py` measures the two alone.
`transformer + predictor` is what KServe's documentation does: a transformer that calls
Feast's `get_online_features` in a thread, and a predictor that calls the SavedModel's signature.
`no-op` answers without a model: KServe's own floor. With `--mlserver PYTHON`, the python of an
environment that holds `mlserver` and the same `tensorflow-cpu`, MLServer serves the same SavedModel
by its custom runtime on V2, which is all it speaks; features are sent, one tensor each.
"""

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONCURRENCIES = (1, 8, 32)
SECONDS = 3.0
SAMPLE_SECONDS = 5.0
RUNTIMES = {"ONNX Runtime": "onnx", "TensorFlow": "tensorflow"}
NAME = "flights"
V1, V2 = f"/v1/models/{NAME}:predict", f"/v2/models/{NAME}/infer"
MLSERVER_RUNTIME = """
import numpy as np
import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class SavedModel(MLModel):
    async def load(self):
        self._loaded = tf.saved_model.load(self.settings.parameters.uri)
        self._signature = self._loaded.signatures["serving_default"]
        return True

    async def predict(self, payload):
        tensors = {}
        for tensor in payload.inputs:
            values = list(tensor.data)
            if tensor.datatype == "BYTES":
                tensors[tensor.name] = tf.constant(values)
            else:
                tensors[tensor.name] = tf.constant(np.array(values, np.float32))
        scores = self._signature(**tensors)["probability"].numpy()
        output = NumpyCodec.encode_output("probability", scores)
        return InferenceResponse(model_name=self.name, outputs=[output])
"""


def main() -> None:
    """Measures every server, or soaks ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--package", default=_newest(".kfloop/models/flights/*"))
    parser.add_argument("--feature_repo", default=_newest(".kfloop/runs/*/*/*/materialized"))
    parser.add_argument("--mlserver", help="python of an environment with MLServer")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds of load; no comparison")
    parser.add_argument("--awake", action="store_true", help="let no CPU go to sleep")
    parser.add_argument("--server", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--predictor_port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        _serve(options)
    elif options.load:
        asyncio.run(_load(options.port, json.loads(options.load)))
    elif options.soak:
        _soak(options)
    elif options.awake:
        with _awake():
            _compare(options)
    else:
        _compare(options)


def _newest(pattern: str) -> str:
    return str(max(Path.cwd().glob(pattern), key=lambda path: path.stat().st_mtime, default=""))


def _compare(options: argparse.Namespace) -> None:
    sent, keys = _bodies(options)
    rates: dict[tuple[str, int], float] = {}
    print("| server | concurrency | p50 ms | p99 ms | requests/s | CPU ms | start s | MB |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    servers = [
        *((f"kfloop by {runtime}, features looked up", keys, V1) for runtime in RUNTIMES),
        ("KServe transformer + predictor", keys, V1),
        *((f"kfloop by {runtime}, features sent", sent, V1) for runtime in RUNTIMES),
        ("KServe no-op", sent, V1),
    ]
    if options.mlserver:
        servers += [(name, _v2(options, sent), V2) for name in ("kfloop, V2", "MLServer, V2")]
    for name, body, path in servers:
        with _running(name, options) as (port, start, pids):
            for concurrency in CONCURRENCIES:
                load = {"body": body, "concurrency": concurrency, "seconds": SECONDS, "path": path}
                before = sum(map(_cpu_seconds, pids))
                found = _ask(port, load)
                used = (sum(map(_cpu_seconds, pids)) - before) * 1000
                rates[name, concurrency] = found["rate"]
                print(
                    f"| {name} | {concurrency} | {found['p50']:.2f} | {found['p99']:.2f} | "
                    f"{found['rate']:,.0f} | {used / found['all']:.2f} | {start:.1f} | "
                    f"{sum(map(_megabytes, pids)):.0f} |",
                    flush=True,
                )
    for concurrency in CONCURRENCIES:
        theirs = rates["KServe transformer + predictor", concurrency]
        for runtime in RUNTIMES:
            ours = rates[f"kfloop by {runtime}, features looked up", concurrency]
            print(
                f"concurrency {concurrency}, {runtime}: {ours / theirs:.1f} times the requests/s "
                "of two hops"
            )


@contextmanager
def _awake() -> Iterator[None]:
    """Keeps every CPU busy with what gives way to anything else at once."""
    idle = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))"
    loops = [
        subprocess.Popen(
            [sys.executable, "-c", f"{idle}; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"]
        )
        for cpu in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for one in loops:
            one.kill()
            one.wait()


def _soak(options: argparse.Namespace) -> None:
    """Prints requests, failures, and how the memory grew over the second half."""
    _, keys = _bodies(options)
    with _running("kfloop, features looked up", options) as (port, _, pids):
        load = {"body": keys, "concurrency": 8, "seconds": options.soak, "path": V1}
        command = _command("--load", json.dumps(load), "--port", str(port))
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        samples = []
        while client.poll() is None:
            samples.append((time.monotonic(), sum(map(_megabytes, pids))))
            time.sleep(SAMPLE_SECONDS)
        assert client.stdout is not None
        found = json.loads(client.stdout.read())
    half = samples[len(samples) // 2 :]
    slope = _slope(half)
    print(
        f"{found['requests']:,} requests in {options.soak:.0f} s, {found['failed']} failed; "
        f"{samples[0][1]:.0f} MB at first, {half[0][1]:.0f} MB halfway, {half[-1][1]:.0f} MB at "
        f"the end: {slope * 3600:+.1f} MB an hour over the second half, "
        f"{slope / found['rate'] * 1e6:+.1f} MB per million requests"
    )


def _slope(samples: list[tuple[float, float]]) -> float:
    """Returns the least-squares slope of MB over seconds."""
    times, sizes = zip(*samples, strict=True)
    middle, mean = sum(times) / len(times), sum(sizes) / len(sizes)
    above = sum((at - middle) * (size - mean) for at, size in samples)
    return above / sum((at - middle) ** 2 for at in times)


def _bodies(options: argparse.Namespace) -> tuple[str, str]:
    """Returns the package's request with all features, and with keys in their place."""
    request = json.loads((Path(options.package) / "reference/request.json").read_text())
    row = request["instances"][0]
    looked_up = _plan(options).features
    keys = {name: value for name, value in row.items() if name not in looked_up}
    return json.dumps({"instances": [row]}), json.dumps({"instances": [keys]})


def _v2(options: argparse.Namespace, sent: str) -> str:
    """Returns the same row as tensors, one per feature."""
    from kfloop.components.contracts.model_package import read_model_json

    (row,) = json.loads(sent)["instances"]
    inputs = []
    for feature in read_model_json(options.package).features:
        kind = "BYTES" if feature.type == "string" else "FP32"
        data = [row[feature.name]]
        inputs.append({"name": feature.name, "shape": [1], "datatype": kind, "data": data})
    return json.dumps({"inputs": inputs})


def _mlserver(options: argparse.Namespace, port: int, directory: Path) -> list[str]:
    """Writes MLServer's configuration and returns its command."""
    ports = {"http_port": port, "grpc_port": _free_port(), "metrics_port": _free_port()}
    # In the server's own process, as ours; its workers would cost a hop.
    quiet = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, "metrics_endpoint": None}
    model = {"name": NAME, "implementation": "runtime.SavedModel"}
    model["parameters"] = {"uri": f"{options.package}/1"}
    (directory / "settings.json").write_text(json.dumps(ports | quiet))
    (directory / "model-settings.json").write_text(json.dumps(model))
    (directory / "runtime.py").write_text(MLSERVER_RUNTIME)
    return [str(Path(options.mlserver).with_name("mlserver")), "start", str(directory)]


def _plan(options: argparse.Namespace) -> Any:
    from kfloop.components.contracts.model_package import read_model_json
    from kfloop.serving.feature_plan import make_plan

    return make_plan(options.feature_repo, read_model_json(options.package))


@contextmanager
def _running(name: str, options: argparse.Namespace) -> Iterator[tuple[int, float, list[int]]]:
    """Runs a server; yields its port, the seconds until it was ready, and its processes."""
    ports = [_free_port(), _free_port()]
    common = ["--package", options.package, "--feature_repo", options.feature_repo]
    scratch = tempfile.TemporaryDirectory()
    if name.startswith("MLServer"):
        commands = [_mlserver(options, ports[0], Path(scratch.name))]
    elif name.startswith("kfloop"):
        commands = [
            [
                *(sys.executable, "-m", "kfloop.serving.model_server", "--model_name", NAME),
                *("--model_dir", options.package, "--http_port", str(ports[0])),
                *(["--feature_repo", options.feature_repo] if "looked up" in name else []),
                *(f"--runtime={flag}" for told, flag in RUNTIMES.items() if f"by {told}," in name),
            ]
        ]
    elif name == "KServe no-op":
        commands = [_command("--server", "noop", "--port", str(ports[0]))]
    else:
        commands = [
            _command("--server", "predictor", "--port", str(ports[1]), *common),
            _command(
                *("--server", "transformer", "--port", str(ports[0]), *common),
                *("--predictor_port", str(ports[1])),
            ),
        ]
    started = time.monotonic()
    servers = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    try:
        for port in ports[: len(servers)]:
            while not _ready(port):
                if any(server.poll() is not None for server in servers):
                    raise SystemExit(f"{name} ended before it was ready.")
                time.sleep(0.05)
        yield ports[0], time.monotonic() - started, [server.pid for server in servers]
    finally:
        for server in servers:
            server.terminate()
            server.wait()
        scratch.cleanup()


def _ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=60) as said:
            return bool(said.status == 200)
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), *arguments]


def _megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ask(port: int, load: dict[str, Any]) -> dict[str, float]:
    command = _command("--load", json.dumps(load), "--port", str(port))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    if found["failed"]:
        raise SystemExit(f"{found['failed']} requests failed.")
    return found


async def _load(port: int, load: dict[str, Any]) -> None:
    """Asks in a closed loop, and prints what came of it."""
    body = load["body"].encode()
    request = (
        f"POST {load['path']} HTTP/1.1\r\nhost: x\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body
    times: list[float] = []
    failed = warmed = 0

    async def client(end: float, warm: bool) -> None:
        nonlocal failed, warmed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            place = head.index(b"content-length:") + 15
            await reader.readexactly(int(head[place : head.index(b"\r", place)]))
            warmed += warm
            if not warm:
                times.append(time.perf_counter() - started)
                failed += b" 200 " not in head[:16]
        writer.close()

    for seconds, warm in ((1.0, True), (load["seconds"], False)):
        began = time.perf_counter()
        clients = (client(began + seconds, warm) for _ in range(load["concurrency"]))
        await asyncio.gather(*clients)
    took = time.perf_counter() - began
    times.sort()
    print(
        json.dumps(
            {
                "requests": len(times),
                "all": len(times) + warmed,
                "failed": failed,
                "rate": len(times) / took,
                "p50": times[len(times) // 2] * 1000,
                "p99": times[int(len(times) * 0.99)] * 1000,
            }
        )
    )


def _serve(options: argparse.Namespace) -> None:
    """Runs one of KServe's servers, without a log line per request."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    # KServe reads the command line when it is imported.
    sys.argv = sys.argv[:1]
    import kserve
    from kserve.model import PredictorConfig

    from kfloop.serving import json_logs

    json_logs.set_up()
    predictor = None
    if options.server == "transformer":
        predictor = PredictorConfig(f"127.0.0.1:{options.predictor_port}", "v1", False, 60)
    model = {"noop": _no_op, "predictor": _predictor, "transformer": _transformer}[options.server]
    served = model(options)
    served.ready = True
    server = kserve.ModelServer(
        http_port=options.port,
        enable_grpc=False,
        enable_latency_logging=False,
        access_log_format=None,
        predictor_config=predictor,
    )
    server.start([served])


def _no_op(options: argparse.Namespace) -> Any:
    import kserve

    class NoOp(kserve.Model):  # type: ignore[misc]  # kserve has no type information
        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            return {"predictions": [{"probability": 0.5}]}

    return NoOp(NAME)


def _predictor(options: argparse.Namespace) -> Any:
    import kserve
    import numpy as np
    import tensorflow as tf

    from kfloop.components.contracts.model_package import read_model_json

    features = read_model_json(options.package).features
    loaded = tf.saved_model.load(f"{options.package}/1")
    signature = loaded.signatures["serving_default"]

    class Predictor(kserve.Model):  # type: ignore[misc]  # kserve has no type information
        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            rows = payload["instances"]
            tensors = {}
            for feature in features:
                values = [row[feature.name] for row in rows]
                if feature.type == "string":
                    tensors[feature.name] = tf.constant([value or "" for value in values])
                else:
                    numbers = [np.nan if value is None else value for value in values]
                    tensors[feature.name] = tf.constant(numbers, tf.float32)
            scores = signature(**tensors)["probability"].numpy()
            return {"predictions": [{"probability": score} for score in scores.tolist()]}

    served = Predictor(NAME)
    served.loaded = loaded  # the signature holds only weak references to the variables
    return served


def _transformer(options: argparse.Namespace) -> Any:
    import kserve
    from feast import FeatureStore

    plan = _plan(options)
    store = FeatureStore(repo_path=options.feature_repo, config=plan.config)
    service = store.get_feature_service("flight_delay")
    asked = [*plan.keys, *plan.inputs]

    def enrich(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        entities = [{name: row[name] for name in asked} for row in rows]
        found = store.get_online_features(features=service, entity_rows=entities).to_dict()
        return [
            row | {name: found[name][place] for name in plan.features}
            for place, row in enumerate(rows)
        ]

    class Transformer(kserve.Model):  # type: ignore[misc]  # kserve has no type information
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            loop = asyncio.get_running_loop()
            return {"instances": await loop.run_in_executor(None, enrich, payload["instances"])}

    return Transformer(NAME)


if __name__ == "__main__":
    main()
