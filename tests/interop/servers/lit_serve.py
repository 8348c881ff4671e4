"""LitServe: JSON as its owner likes it, and a key in ``X-API-Key`` (its variable is
``LIT_SERVER_API_KEY``).
"""

import known
import litserve


class Colours(litserve.LitAPI):
    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["picture"]["base64"]

    def predict(self, text):
        return known.of_base64(text)

    def encode_response(self, answer):
        best = sorted(zip(known.CLASSES, answer.tolist(), strict=True), key=lambda pair: -pair[1])
        return {"answer": {"top": [{"name": name, "confidence": score} for name, score in best]}}


if __name__ == "__main__":  # its worker is a process that imports this file again
    server = litserve.LitServer(Colours(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=known.port(), generate_client_file=False)
