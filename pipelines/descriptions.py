# SPDX-License-Identifier: Apache-2.0
"""What each parameter of a compiled pipeline means, for its YAML, the docs and `kfloop catalogue`.

It is written once: in the docstring of the component that takes the parameter, or, for one that
no component takes, in the docstring of the pipeline or sub-pipeline. KFP's own form for a run
shows names and types alone; its page of a pipeline shows the YAML.
"""

import re
from typing import Any

import kfloop.components
from kfloop.components.contracts.errors import InputError
from kfloop.pipelines.resources import executor_functions

Document = dict[str, Any]
# Whose words are taken where several components take a parameter: the first one's of these.
SPEAKERS = (
    *("retrieve_training_set", "train_model", "evaluate_model", "split_data", "transform_data"),
    *("roll_out_model", "register_model", "decide_retraining", "detect_drift"),
)
# How a docstring points to another component's input of the same name.
REFERENCE = re.compile(r"As for (\w+)\b")
# What may be an input of the component; it goes by another name in the pipeline.
NAME = re.compile(r"`([\w-]+)`")
FORMATS = {"LIST": "A JSON list.", "STRUCT": "A JSON object."}


def describe_parameters(spec: Document) -> None:
    """Writes a description of every parameter into a compiled pipeline, in place.

    Raises:
        InputError: If nothing describes a parameter, or components do it in different words and
            `SPEAKERS` names none of them.
    """
    for name, about in spec["root"].get("inputDefinitions", {}).get("parameters", {}).items():
        words = _chosen(name, spec["pipelineInfo"]["name"], _words(spec, spec["root"], name))
        form = FORMATS.get(about["parameterType"])
        about["description"] = f"{words} {form}" if form else words


def _words(spec: Document, component: Document, name: str) -> dict[str, str]:
    """Returns what is said about an input, by who says it: its own component, or who gets it."""
    about = component.get("inputDefinitions", {}).get("parameters", {}).get(name, {})
    if own := about.get("description"):
        speaker = executor_functions(spec).get(component.get("executorLabel", ""), "")
        return {speaker: " ".join(own.split())}
    said: dict[str, str] = {}
    for task in component.get("dag", {}).get("tasks", {}).values():
        taker = spec["components"][task["componentRef"]["name"]]
        given = task.get("inputs", {}).get("parameters", {})
        outer = {inner: source.get("componentInputParameter") for inner, source in given.items()}
        for inner in (key for key, source in outer.items() if source == name):
            for speaker, words in _followed(_words(spec, taker, inner), inner).items():
                said[speaker] = _renamed(words, outer)
    return said


def _renamed(words: str, outer: dict[str, str | None]) -> str:
    return NAME.sub(lambda found: f"`{outer.get(found[1]) or found[1]}`", words)


def _followed(said: dict[str, str], name: str) -> dict[str, str]:
    """Puts what is referred to in the place of a reference."""
    followed = {}
    for speaker, words in said.items():
        if reference := REFERENCE.match(words):
            speaker = reference[1]
            inputs = getattr(kfloop.components, speaker).component_spec.inputs
            words = " ".join(inputs[name].description.split())
        followed[speaker] = words
    return followed


def _chosen(name: str, pipeline: str, said: dict[str, str]) -> str:
    ranked = [said[speaker] for speaker in ("", *SPEAKERS) if speaker in said]
    different = ranked[:1] or sorted(set(said.values()))
    if len(different) == 1:
        return different[0]
    wrong = f"{', '.join(sorted(said))} say different things about" if said else "nothing describes"
    raise InputError(
        f"{wrong} the parameter {name} of the pipeline {pipeline}; describe it in the Args of the "
        "pipeline's docstring."
    )
