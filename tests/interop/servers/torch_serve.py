"""TorchServe, which is a Java program: raw pictures to ``/predictions``, SageMaker's
``/invocations`` too.

This file is the script that packs and starts it, and the handler in what was packed.
"""

import json
import os
import sys
import zipfile
from pathlib import Path

import known


class Colours:
    def initialize(self, context):
        pass

    def handle(self, requests, context):
        return [self.answer(one.get("data") or one["body"]) for one in requests]

    def answer(self, data):
        return dict(zip(known.CLASSES, known.of_file(bytes(data)).tolist(), strict=True))


def pack(folder):
    """Write the model archive, as torch-model-archiver would."""
    model = {"modelName": known.NAME, "handler": "torch_serve.py", "modelVersion": "1.0"}
    with zipfile.ZipFile(folder / f"{known.NAME}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        archive.write(__file__, "torch_serve.py")
        archive.write(known.__file__, "known.py")


def settings():
    """Return the configuration file: one worker, no other ports than these."""
    return "\n".join(
        [
            f"inference_address=http://127.0.0.1:{known.port()}",
            f"metrics_address=http://127.0.0.1:{sys.argv[2]}",
            f"grpc_inference_port={sys.argv[3]}",
            f"grpc_management_port={sys.argv[4]}",
            f"management_address=http://127.0.0.1:{sys.argv[5]}",
            "default_workers_per_model=1",
        ]
    )


if __name__ == "__main__":
    folder = Path.cwd()
    pack(folder)
    (folder / "config.properties").write_text(settings())
    words = [
        "--start",
        "--foreground",
        "--ncs",
        "--disable-token-auth",
        "--ts-config",
        "config.properties",
    ]
    words += ["--model-store", str(folder), "--models", f"{known.NAME}={known.NAME}.mar"]
    program = str(Path(sys.executable).with_name("torchserve"))
    os.execv(program, [program, *words])
