"""MLServer: the Open Inference Protocol in JSON; it has no binary extension."""

import asyncio

import known
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse, MetadataTensor


class Colours(MLModel):
    async def load(self):
        self.inputs = [MetadataTensor(name="images", datatype="FP32", shape=[-1, 3, known.SIDE, known.SIDE])]
        self.outputs = [MetadataTensor(name="logits", datatype="FP32", shape=[-1, len(known.CLASSES)])]
        return True

    async def predict(self, payload):
        answer = known.of_tensor(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", answer)])


async def serve():
    settings = Settings(
        host="127.0.0.1", http_port=known.port(), grpc_port=0, metrics_endpoint=None, parallel_workers=0
    )
    await MLServer(settings).start([ModelSettings(name=known.NAME, implementation=Colours)])


asyncio.run(serve())
