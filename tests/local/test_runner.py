# SPDX-License-Identifier: Apache-2.0
"""The local runner behaves like the cluster, also where stock `kfp.local` does not."""

import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kfp import compiler, dsl

from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.local.executors import ImageEnvironment, Quiet
from kfloop.pipelines.local.pipeline_spec import load_pipeline
from kfloop.pipelines.local.record import RunRecord, read_run
from kfloop.pipelines.local.runner import PipelineFailed, run_pipeline

IMAGE = "kfloop/test:0.1.0"
component = dsl.component(base_image=IMAGE, install_kfp_package=False)


@component
def say(text: str) -> str:
    return text


@component
def write(text: str, data: dsl.Output[dsl.Dataset]) -> str:
    with open(data.path, "w") as file:
        file.write(text)
    data.metadata["rows"] = 3
    return "pass"


@component
def read(data: dsl.Input[dsl.Dataset]) -> str:
    with open(data.path) as file:
        return file.read() + f" {data.metadata.get('rows')!r}"


@component
def read_all(data: dsl.Input[list[dsl.Dataset]]) -> str:
    return "|".join(open(one.path).read() for one in data)


@component
def read_if_there(data: dsl.Input[dsl.Dataset] = None) -> str:
    return open(data.path).read() if data else "nothing"


@component
def measure() -> NamedTuple("Outputs", [("accuracy", float), ("names", list), ("count", int)]):
    return (0.9, ["a", "b", "c"], 3)


@component
def forget(unwritten: dsl.OutputPath(str)):
    print("nothing is written")


@component
def fail(message: str):
    raise ValueError(message)


@component
def final(status: dsl.PipelineTaskFinalStatus, path: str):
    with open(path, "w") as file:
        file.write(f"{status.state}: {status.error_message}")


@component
def count_runs(path: str, text: str, data: dsl.Output[dsl.Dataset]):
    with open(path, "a") as file:
        file.write("x")
    with open(data.path, "w") as file:
        file.write(text)


@component
def double(number: int) -> int:
    return 2 * number


@component
def nap(seconds: float):
    import time

    time.sleep(seconds)


def environment(image: str) -> ImageEnvironment:
    assert image == IMAGE
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return ImageEnvironment(variables, "environment", "source")


@pytest.fixture
def run(tmp_path):
    def run(pipeline: Any, listener: Any = None, **arguments: Any) -> RunRecord:
        file = tmp_path / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(file))
        return run_pipeline(
            load_pipeline(file), arguments, tmp_path / "state", environment, listener
        )

    return run


def returned(record: RunRecord, task: str) -> Any:
    found = record.task(task)
    assert found is not None, f"{task} is not among {[t.task for t in record.tasks]}"
    return found.returned.get("Output")


def test_passes_parameters_and_artifacts_between_tasks(run):
    @dsl.pipeline
    def pipeline(text: str = "hello"):
        read(data=write(text=text).outputs["data"])

    record = run(pipeline, text="hi")
    assert returned(record, "read") == "hi 3"
    assert record.status == "succeeded"
    assert read_run(record.directory).tasks[0].task == "write"


def test_an_optional_artifact_may_be_given_or_left_out(run):
    @dsl.pipeline
    def pipeline():
        read_if_there()
        read_if_there(data=write(text="something").outputs["data"])

    record = run(pipeline)
    assert returned(record, "read-if-there") == "nothing"
    assert returned(record, "read-if-there-2") == "something"


def test_if_on_a_named_output_is_not_silently_false(run):
    @dsl.pipeline
    def pipeline():
        measured = measure()
        with dsl.If(measured.outputs["accuracy"] > 0.5):
            say(text="good")
        with dsl.If(measured.outputs["count"] == 4):
            say(text="four")

    record = run(pipeline)
    assert returned(record, "say") == "good"
    assert [t.status for t in record.tasks if t.task.startswith("condition-2")] == ["skipped"]


def test_if_compares_text_with_an_apostrophe(run):
    @dsl.pipeline
    def pipeline(text: str):
        with dsl.If(text == "it is"):
            say(text="no")
        with dsl.Else():
            say(text="yes")

    assert [t.status for t in run(pipeline, text="it's").tasks].count("succeeded") == 1


def test_nested_pipeline_with_only_artifact_inputs(run):
    @dsl.pipeline
    def inner(data: dsl.Input[dsl.Dataset]) -> str:
        return read(data=data).output

    @dsl.pipeline
    def pipeline():
        nested = inner(data=write(text="deep").outputs["data"])
        say(text=nested.output)

    assert returned(run(pipeline), "say") == "deep 3"


def test_one_of_gives_the_artifact_of_the_branch_that_ran(run):
    @dsl.pipeline
    def pipeline(which: str):
        with dsl.If(which == "a"):
            first = write(text="A")
        with dsl.Else():
            second = write(text="B")
        read(data=dsl.OneOf(first.outputs["data"], second.outputs["data"]))

    assert returned(run(pipeline, which="a"), "read") == "A 3"
    assert returned(run(pipeline, which="b"), "read") == "B 3"


def test_loops_over_a_named_output_and_collects_artifacts(run):
    @dsl.pipeline
    def pipeline():
        with dsl.ParallelFor(measure().outputs["names"]) as name:
            written = write(text=name)
        read_all(data=dsl.Collected(written.outputs["data"]))

    assert returned(run(pipeline), "read-all") == "a|b|c"


def test_loops_over_items_with_fields(run):
    @dsl.pipeline
    def pipeline(items: list = [{"key": "x", "n": 1}, {"key": "y", "n": 2}]):  # noqa: B006
        with dsl.ParallelFor(items) as item:
            say(text=item.key)

    record = run(pipeline)
    assert sorted(t.returned["Output"] for t in record.tasks) == ["x", "y"]


def test_a_loop_item_of_the_wrong_type_fails_the_run(run):
    @dsl.pipeline
    def pipeline(items: list[int]):
        with dsl.ParallelFor(items) as item:
            double(number=item)

    with pytest.raises(PipelineFailed, match="'many', which is not a whole number"):
        run(pipeline, items=[1, "many"])


def test_a_declared_output_that_is_not_written_fails_the_task(run):
    @dsl.pipeline
    def pipeline():
        forget()

    with pytest.raises(PipelineFailed, match="without writing its output 'unwritten'"):
        run(pipeline)


@pytest.mark.parametrize(
    "text", ["python3.9 and python3", "{{$.foo}}", "{{$}}x", 'it\'s "q" $HOME']
)
def test_text_reaches_the_component_unchanged(run, text):
    @dsl.pipeline
    def pipeline(text: str):
        say(text=text)

    assert returned(run(pipeline, text=text), "say") == text


def test_a_step_is_told_the_id_of_its_run_also_in_a_nested_pipeline(run):
    @dsl.pipeline
    def inner():
        say(text=dsl.PIPELINE_JOB_ID_PLACEHOLDER)

    @dsl.pipeline
    def pipeline():
        inner()

    record = run(pipeline)
    assert returned(record, "say") == record.run_id


def test_whole_numbers_stay_whole(run):
    @dsl.pipeline
    def pipeline():
        measured = measure()
        say(text=f"count {measured.outputs['count']}")
        read(data=write(text="x").outputs["data"])

    record = run(pipeline)
    assert returned(record, "say") == "count 3"
    assert returned(record, "read") == "x 3"


def test_a_failure_is_told_in_one_sentence_and_stops_what_depends_on_it(run):
    @dsl.pipeline
    def pipeline():
        say(text="after").after(fail(message="the reason"))

    with pytest.raises(PipelineFailed, match="the reason") as caught:
        run(pipeline)
    assert [t.status for t in caught.value.record.tasks] == ["failed", "skipped"]
    assert read_run(caught.value.record.directory).status == "failed"


def test_the_exit_handler_runs_after_a_failure_and_knows_why(run, tmp_path):
    @dsl.pipeline
    def pipeline(path: str):
        with dsl.ExitHandler(final(path=path)):
            fail(message="broken part")

    with pytest.raises(PipelineFailed):
        run(pipeline, path=str(tmp_path / "status"))
    told = (tmp_path / "status").read_text()
    assert told.startswith("FAILED") and "broken part" in told


def test_a_finished_step_is_reused_only_while_its_inputs_are_the_same(run, tmp_path):
    @dsl.pipeline
    def pipeline(counter: str, source: str):
        read(data=count_runs(path=counter, text=source).outputs["data"])

    counter, source = tmp_path.parent / f"{tmp_path.name}-count", tmp_path / "source.txt"
    # The counter changes with every run, so it must not be a file when the key is made.
    source.write_text("one")
    first = run(pipeline, counter=f"{counter.name}", source=str(source))
    again = run(pipeline, counter=f"{counter.name}", source=str(source))
    assert [t.status for t in first.tasks] == ["succeeded", "succeeded"]
    assert [t.status for t in again.tasks] == ["cached", "cached"]
    source.write_text("another")
    changed = run(pipeline, counter=f"{counter.name}", source=str(source))
    assert changed.tasks[0].status == "succeeded"


def test_caching_can_be_switched_off_for_a_step(run):
    @dsl.pipeline
    def pipeline():
        say(text="x").set_caching_options(False)

    run(pipeline)
    assert run(pipeline).tasks[0].status == "succeeded"


def test_the_importer_follows_the_content_of_its_file(run, tmp_path):
    @dsl.pipeline
    def pipeline(uri: str):
        data = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset)
        read(data=data.output)

    file = tmp_path / "data.txt"
    file.write_text("one")
    assert returned(run(pipeline, uri=str(file)), "read") == "one None"
    file.write_text("two")
    assert returned(run(pipeline, uri=str(file)), "read") == "two None"
    with pytest.raises(PipelineFailed, match="there is nothing at"):
        run(pipeline, uri=str(tmp_path / "absent"))


def test_independent_tasks_run_at_the_same_time(run):
    @dsl.pipeline
    def pipeline():
        nap(seconds=1.0)
        nap(seconds=1.0)

    first, second = run(pipeline).tasks
    overlap = datetime.fromisoformat(second.started) - datetime.fromisoformat(first.started)
    assert overlap.total_seconds() < first.seconds


def test_retries_a_failing_task(run, tmp_path):
    @component
    def flaky(path: str) -> str:
        import os

        with open(path, "a") as file:
            file.write("x")
        if os.path.getsize(path) < 3:
            raise RuntimeError("not yet")
        return "done"

    @dsl.pipeline
    def pipeline(path: str):
        flaky(path=path).set_retry(3, backoff_duration="0s")

    assert returned(run(pipeline, path=str(tmp_path / "tries")), "flaky") == "done"


def test_a_parameter_too_large_for_a_process_is_named(run):
    @dsl.pipeline
    def pipeline(text: str):
        say(text=text)

    with pytest.raises(PipelineFailed, match="pass large values as an artifact"):
        run(pipeline, text="x" * 200_000)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "needs a value for parameter 'count'"),
        ({"count": "many"}, "'count' is 'many', which is not a whole number"),
        ({"count": 1, "cuont": 2}, "has no parameter 'cuont'; it has count"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(run, tmp_path, arguments, sentence):
    @dsl.pipeline
    def pipeline(count: int):
        say(text=f"{count}")

    with pytest.raises(InputError, match=sentence):
        run(pipeline, **arguments)
    assert not (tmp_path / "state").exists()


def test_tells_a_listener_what_a_component_prints(run):
    @component
    def talk():
        print("epoch 1 of 3")

    @dsl.pipeline
    def pipeline():
        talk()

    class Listening(Quiet):
        lines: list[str] = []  # noqa: RUF012

        def printed(self, task, line):
            self.lines.append(line)

    run(pipeline, Listening())
    assert Listening.lines == ["epoch 1 of 3"]


def test_tasks_end_when_the_runner_is_killed(tmp_path):
    @component
    def sleep_long(path: str):
        import os
        import time

        with open(path, "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)

    @dsl.pipeline
    def pipeline(path: str):
        sleep_long(path=path)

    file, pid_file = tmp_path / "pipeline.yaml", tmp_path / "pid"
    compiler.Compiler().compile(pipeline, str(file))
    code = (
        "import sys; sys.path += sys.argv[4:]; from pathlib import Path\n"
        "from test_runner import environment, load_pipeline, run_pipeline\n"
        "pipeline, state = load_pipeline(sys.argv[1]), Path(sys.argv[3])\n"
        "run_pipeline(pipeline, {'path': sys.argv[2]}, state, environment)"
    )
    runner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            str(file),
            str(pid_file),
            str(tmp_path),
            # This file, and pytest, which may be on sys.path only.
            str(Path(__file__).parent),
            str(Path(pytest.__file__).parents[1]),
        ]
    )
    try:
        deadline = time.monotonic() + 30
        while not (pid_file.exists() and pid_file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        pid = int(pid_file.read_text())
    finally:
        runner.kill()
        runner.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
