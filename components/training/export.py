# SPDX-License-Identifier: Apache-2.0
"""The exported graph: encoder, network and final activation, as a TensorFlow SavedModel.

With the JAX backend the network is lowered to StableHLO and embedded, with its weights as
TensorFlow variables: the result needs no JAX, and runs on CPUs and NVIDIA GPUs whatever it was
trained on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kfloop.components.contracts.model_package import ModelPackage
from kfloop.components.training.encoder import Encoder
from kfloop.components.training.label import Label

Signature = dict[str, tf.TensorSpec]
Serve = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


def export(
    path: Path, package: ModelPackage, encoder: Encoder, network: keras.Model, label: Label
) -> None:
    """Writes the SavedModel of a package.

    Args:
        path: The directory to write.
        package: Names the inputs and the output.
        encoder: Put in front of the network.
        network: Returns logits, or the standardised value.
        label: Returns a regression to its own unit.
    """
    signature = {
        feature.name: tf.TensorSpec(
            [None], tf.string if feature.type == "string" else tf.float32, name=feature.name
        )
        for feature in package.features
    }
    if keras.backend.backend() == "jax":
        _export_jax(path, package, encoder, network, label, signature)
        return
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.track(encoder)
    serve = _serve(package, encoder, lambda encoded: network(encoded, training=False), label)
    archive.add_endpoint("serving_default", serve, input_signature=[signature])
    archive.write_out(str(path), verbose=False)


def _serve(
    package: ModelPackage, encoder: Encoder, logits: Callable[[Any], tf.Tensor], label: Label
) -> Serve:
    def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = logits(encoder(inputs))
        if package.task == "multiclass":
            return {package.output: tf.nn.softmax(outputs)}
        if package.task == "binary":
            return {package.output: tf.sigmoid(outputs)[:, 0]}
        return {package.output: outputs[:, 0] * label.scale + label.shift}

    return serve


def _export_jax(
    path: Path,
    package: ModelPackage,
    encoder: Encoder,
    network: keras.Model,
    label: Label,
    signature: Signature,
) -> None:
    from jax.experimental import jax2tf

    trainable = len(network.trainable_variables)
    module = tf.Module()
    module.encoder = encoder
    module.weights = [
        tf.Variable(np.asarray(variable))
        for variable in (*network.trainable_variables, *network.non_trainable_variables)
    ]

    def stateless(weights: list[Any], encoded: dict[str, Any]) -> Any:
        outputs, _ = network.stateless_call(
            weights[:trainable], weights[trainable:], encoded, training=False
        )
        return outputs

    converted = jax2tf.convert(
        stateless,
        polymorphic_shapes=[None, dict.fromkeys(encoder.output_names, "(rows, _)")],
        with_gradient=False,
        native_serialization_platforms=["cpu", "cuda"],
    )
    serve = _serve(
        package, encoder, lambda encoded: converted(list(module.weights), encoded), label
    )
    module.serve = tf.function(serve, input_signature=[signature], autograph=False)
    # What is served runs on one device.
    keras.distribution.set_distribution(None)
    tf.saved_model.save(
        module, str(path), signatures={"serving_default": module.serve.get_concrete_function()}
    )
