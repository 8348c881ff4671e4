"""MLServer: the Open Inference Protocol in JSON; it has no binary extension."""

import json
import sys
from pathlib import Path

import known
from mlserver import MLModel
from mlserver.cli import main
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, MetadataTensor


class Colours(MLModel):
    async def load(self):
        self.inputs = [
            MetadataTensor(name="images", datatype="FP32", shape=[-1, 3, known.SIDE, known.SIDE])
        ]
        self.outputs = [
            MetadataTensor(name="logits", datatype="FP32", shape=[-1, len(known.CLASSES)])
        ]
        return True

    async def predict(self, payload):
        answer = known.of_tensor(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("logits", answer)]
        )


def serve():
    """Start it as its command does, on a folder with one model."""
    settings = {
        "host": "127.0.0.1",
        "http_port": known.port(),
        "grpc_port": 0,
        "parallel_workers": 0,
    }
    Path("settings.json").write_text(json.dumps(settings | {"metrics_endpoint": None}))
    Path("model-settings.json").write_text(
        json.dumps({"name": known.NAME, "implementation": "ml_server.Colours"})
    )
    sys.argv = ["mlserver", "start", "."]
    main()


if __name__ == "__main__":
    serve()
