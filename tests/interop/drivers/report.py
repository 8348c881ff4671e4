"""What every driver does: read what is asked from stdin, ask it, print what came back as JSON."""

import base64
import json
import sys
from pathlib import Path


class Given:
    """What a test asks for.

    Attributes:
        task: the name of one of the driver's functions.
        url: the server.
        key: its key.
        picture: the path of a picture file.
        labels: a closed set of labels, where the task has one.
    """

    def __init__(self, task, url, key, picture, labels=()):
        self.task, self.url, self.key, self.picture, self.labels = task, url, key, picture, list(labels)

    @property
    def data(self):
        """The bytes of the picture."""
        return Path(self.picture).read_bytes()

    @property
    def base64(self):
        """The picture as text."""
        return base64.b64encode(self.data).decode()


def report(*tasks):
    """Run the task that is asked for; an exception is an answer too."""
    given = Given(**json.load(sys.stdin))
    try:
        answer = next(task for task in tasks if task.__name__ == given.task)(given)
    except Exception as error:
        answer = {"error": type(error).__name__, "message": str(error), "code": getattr(error, "code", None)}
    json.dump(answer, sys.stdout)
