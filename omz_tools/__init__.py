"""From a published checkpoint to OpenVINO IR, verified at every step.

The way the data takes::

    model.yml -> descriptor -> download -> checkpoint -> onnx_export -> binding -> ir -> verify

One module per stage; `pipeline` puts those of a download in a row, `conversion` those of a conversion. Importing this
package, and listing or downloading models, never imports torch, transformers, onnx or openvino.
"""

__version__ = "0.1.0"
