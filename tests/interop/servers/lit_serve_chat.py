"""LitServe as an OpenAI server: it checks requests against its own models of OpenAI's, and tells no
probabilities.
"""

import json

import known
import litserve


class Colours(litserve.LitAPI):
    def setup(self, device):
        pass

    def predict(self, request):
        [url] = [
            part.image_url.url for part in request.messages[-1].content if part.type == "image_url"
        ]
        allowed = request.response_format.json_schema.schema_["properties"]["label"]["enum"]
        scores = dict(
            zip(known.CLASSES, known.of_base64(url.partition(";base64,")[2]), strict=True)
        )
        yield json.dumps({"label": max(allowed, key=scores.__getitem__)})


if __name__ == "__main__":  # its worker is a process that imports this file again
    server = litserve.LitServer(
        Colours(spec=litserve.OpenAISpec()), accelerator="cpu", workers_per_device=1
    )
    server.run(host="127.0.0.1", port=known.port(), generate_client_file=False)
