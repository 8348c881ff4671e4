"""Signs requests to Amazon's services (Signature Version 4), with the extra ``[aws]``."""

from __future__ import annotations

import re
from typing import Any

from pgn_client.errors import ConfigurationError, MissingDependencyError

# rekognition.us-east-1.amazonaws.com, runtime.sagemaker.us-east-1.amazonaws.com,
# rekognition-fips.us-east-1.amazonaws.com, rekognition.cn-north-1.amazonaws.com.cn
HOST = re.compile(
    r"(?:.+\.)?(?P<service>[a-z0-9-]+?)(?:-fips)?\.(?P<region>[a-z]+(?:-[a-z]+)+-[0-9]+)"
    r"\.amazonaws\.com(?:\.cn)?"
)
# The other headers may be changed by a proxy, which would break the signature.
SIGNED = ("content-type", "x-amz-target")


class SigV4:
    """Callable that signs a request for AWS; give it as ``http={"auth": SigV4()}``.

    The credentials come from where AWS's own tools look for them: environment variables, the files
    in ``~/.aws``, or the role of the machine. They are refreshed when they expire.

    Args:
        service: Name of the service, for example ``rekognition``; None takes it from the URL's
            host.
        region: Region of the endpoint, for example ``us-east-1``; None takes it from the URL's
            host.

    Raises:
        MissingDependencyError: The extra ``[aws]`` is not installed.
        ConfigurationError: There are no credentials.
    """

    def __init__(self, service: str | None = None, region: str | None = None) -> None:
        try:
            from botocore.session import Session
        except ImportError:
            raise MissingDependencyError("signing requests for AWS", "aws") from None
        self._service = service
        self._region = region
        self._credentials = Session().get_credentials()
        if self._credentials is None:
            raise ConfigurationError(
                "auth aws: got no credentials, expected those of your AWS configuration; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or run aws configure"
            )

    def __repr__(self) -> str:
        return "<aws signature>"

    def __call__(self, request: Any) -> Any:
        """Return an httpx request with the headers of its signature.

        Raises:
            ConfigurationError: The URL's host does not show the service and the region, or the
                credentials cannot be refreshed.
        """
        from botocore.auth import SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError

        service, region = self._scope(request.url.host)
        headers = {name: request.headers[name] for name in SIGNED if name in request.headers}
        unsigned = AWSRequest(request.method, str(request.url), headers, request.content)
        try:
            # They may be refreshed between two requests.
            frozen = self._credentials.get_frozen_credentials()
        except BotoCoreError as error:
            raise ConfigurationError(
                f"auth aws: cannot refresh the credentials ({error}); check your AWS configuration"
            ) from error
        SigV4Auth(frozen, service, region).add_auth(unsigned)
        request.headers.update(dict(unsigned.headers.items()))
        return request

    def _scope(self, host: str) -> tuple[str, str]:
        """Return service and region of a host."""
        match = HOST.fullmatch(host)
        service = self._service or (match and match["service"])
        region = self._region or (match and match["region"])
        if not service or not region:
            raise ConfigurationError(
                f"auth aws: got the host {host}, expected one such as "
                "rekognition.us-east-1.amazonaws.com; correct the URL, or give service and region "
                'in Python: http={"auth": SigV4("rekognition", "us-east-1")}'
            )
        return service, region
