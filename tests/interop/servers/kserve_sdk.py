"""KServe's ModelServer: ``:predict`` of its v1 protocol, and v2 in JSON and binary."""

import known
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.utils.utils import generate_uuid


class Colours(Model):
    def __init__(self):
        super().__init__(known.NAME)
        self.ready = True

    def get_input_types(self):
        return [{"name": "images", "datatype": "FP32", "shape": [-1, 3, known.SIDE, known.SIDE]}]

    def get_output_types(self):
        return [{"name": "logits", "datatype": "FP32", "shape": [-1, len(known.CLASSES)]}]

    def predict(self, payload, headers=None, response_headers=None):
        if isinstance(payload, dict):
            return {
                "predictions": [
                    known.of_base64(one["b64"]).tolist() for one in payload["instances"]
                ]
            }
        answer = known.of_tensor(payload.inputs[0].as_numpy())
        output = InferOutput("logits", list(answer.shape), "FP32")
        output.set_data_from_numpy(answer, binary_data=payload.use_binary_outputs)
        return InferResponse(
            response_id=payload.id or generate_uuid(),
            model_name=self.name,
            infer_outputs=[output],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )


ModelServer(http_port=known.port(), enable_grpc=False).start([Colours()])
