"""NVIDIA's Triton, started by pytriton: the Open Inference Protocol with all its extensions."""

import sysconfig
from pathlib import Path

import known
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

# What pytriton expects of Python >= 3.11.6; Triton's own interpreters read it too.
LOCK = (
    "import threading, multiprocessing.resource_tracker as t; hasattr(t._resource_tracker._lock, "
    "'_recursion_count')"
    " or setattr(t._resource_tracker, '_lock', threading._PyRLock())\n"
)


@batch
def infer(images):
    return {"logits": known.of_tensor(images)}


if __name__ == "__main__":
    Path(sysconfig.get_path("purelib"), "recursion_count.pth").write_text(LOCK)
    settings = TritonConfig(
        http_address="127.0.0.1", http_port=known.port(), allow_grpc=False, allow_metrics=False
    )
    with Triton(config=settings) as triton:
        triton.bind(
            known.NAME,
            infer,
            inputs=[Tensor(name="images", dtype=np.float32, shape=(3, known.SIDE, known.SIDE))],
            outputs=[Tensor(name="logits", dtype=np.float32, shape=(len(known.CLASSES),))],
            config=ModelConfig(max_batch_size=8),
        )
        triton.serve()
