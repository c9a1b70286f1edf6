"""From a published checkpoint to OpenVINO IR, verified at every step.

The way the data takes::

    model.yml -> descriptor -> download -> checkpoint -> onnx_export -> ir -> verify

One module per stage; `pipeline` is the only one that knows them all. Importing this package, and listing or downloading
models, never imports torch, transformers, onnx or openvino.
"""

__version__ = "0.1.0"
