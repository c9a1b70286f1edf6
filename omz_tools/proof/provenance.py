"""A manifest as an in-toto statement with SLSA's provenance, for the tools that sign such statements and check them.

The formats: in-toto's Statement version 1 <https://in-toto.io/Statement/v1> and SLSA's build provenance version 1
<https://slsa.dev/provenance/v1>.
"""

import json
from typing import Any

import msgspec

from omz_tools.proof.manifest import Manifest

_BUILD_TYPE = "urn:omz_tools:conversion:1"
_BUILDER = "urn:omz_tools:omz_converter"


def statement(made: Manifest) -> dict[str, Any]:
    """The statement: the outputs are its subjects, the sources what they were built from. It is not signed."""
    parameters = {
        "model": made.model,
        "descriptor": made.descriptor,
        "outputs": [output.what for output in made.outputs],
        "export": msgspec.to_builtins(made.export, enc_hook=str),
    }
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": file.path, "digest": file.digest} for output in made.outputs for file in output.files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": parameters,
                "resolvedDependencies": [
                    {"name": source.name, "digest": source.digest}
                    | ({"uri": source.origins[0].url} if source.origins else {})
                    for source in made.sources
                ],
            },
            "runDetails": {"builder": {"id": _BUILDER, "version": made.toolchain}},
        },
    }


def dump(made: Manifest) -> str:
    """The statement as the text of a file."""
    return json.dumps(statement(made), indent=1) + "\n"
