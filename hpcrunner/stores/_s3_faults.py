"""What S3's errors mean, and what to do about them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpcrunner.errors import ChangedError, HpcrunnerError, RefusedError, StoreError
from hpcrunner.stores._credentials import Keys
from hpcrunner.stores._parts import UploadGone
from hpcrunner.stores._retry import Weather
from hpcrunner.stores._web import innermost, tls_fault

_WEATHER = {"SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout",
            "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded",
            "OperationAborted", "RequestTimeoutException", "XMinioServerNotInitialized",
            # Of what was sent, not all arrived, or not as it was.
            "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_FULL = {"QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
_GONE = {"NoSuchUpload", "InvalidPart", "InvalidPartOrder"}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
ABSENT = {"NoSuchKey", "404", "NotFound", "NoSuchObject"}


@contextmanager
def s3_faults(location: str, host: str, bucket: str, keys: Keys) -> Iterator[None]:
    """Makes botocore's exceptions StoreErrors that say what is wrong and what would be right, without secrets."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except exceptions.ClientError as error:
        raise explain(error, location, host, bucket, keys) from None
    except exceptions.SSLError as error:
        raise tls_fault(error, location, host) from None
    except exceptions.InvalidProxiesConfigError as error:
        raise StoreError(f"{location}: this host's settings of a proxy can't be used: {innermost(error)}",
                         transient=True) from None
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError, exceptions.CredentialRetrievalError,
            exceptions.ProfileNotFound, exceptions.TokenRetrievalError) as error:
        raise StoreError(f"{location}: the site's `stores` lists {host}, but this host's user has no credentials for "
                         f"it ({innermost(error)}); set credentials_file there, or take `sdk` out of store_credentials",
                         transient=True) from None
    except (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError) as error:
        raise Weather(f"{location}: {host} doesn't answer: {innermost(error)}") from None
    except (exceptions.HTTPClientError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError,
            ResponseParserError, HTTPError) as error:
        cause = getattr(error, "kwargs", {}).get("error")
        if isinstance(cause, HpcrunnerError):
            raise cause from None  # Ours, raised while the body was read.
        raise Weather(f"{location}: the connection to {host} failed: {innermost(error)}") from None
    except UnicodeError:
        raise RefusedError(f"{location!r}: no location in S3, as it has characters that can't be sent") from None
    except exceptions.BotoCoreError as error:
        raise StoreError(f"{location}: {innermost(error)}") from None
    except RecursionError:
        # botocore asks for the bucket's region when it is redirected, and does so again when that is redirected.
        raise StoreError(f"{location}: the bucket is in another region, and {host} doesn't say in which; set `region` "
                         "in the site's `stores` or in the message's credentials") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EIO, errno.ESTALE):
            raise  # Of the file that is sent.
        raise Weather(f"{location}: the connection to {host} failed: {error.strerror or error}") from None


def response_of(error: object) -> dict[str, Any]:
    """Empty if there was none."""
    return getattr(error, "response", None) or {}


def code_of(error: object) -> str:
    return str(response_of(error).get("Error", {}).get("Code", ""))


def explain(error: object, location: str, host: str, bucket: str, keys: Keys) -> StoreError:
    """For a ClientError."""
    response = response_of(error)
    code, said = code_of(error), str(response.get("Error", {}).get("Message", ""))[:200]
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    who = keys.described
    if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
        return ChangedError(f"{location}: changed meanwhile")
    if code in _GONE:
        return UploadGone(f"{location}: the store has forgotten the parts that were sent, or has others ({code})")
    if code == "NoSuchBucket":
        return StoreError(f"{location}: there is no bucket {bucket!r} at {host}; create it, or correct `bucket` in the "
                          "client's configuration")
    if code in ("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"):
        return StoreError(f"{location}: {host} doesn't know the access key of {who} ({code}); correct it, and submit "
                          "again if the message brought it")
    if code == "SignatureDoesNotMatch":
        return StoreError(f"{location}: {host} refuses {who}: the secret key is wrong ({code}); correct it, and submit "
                          "again if the message brought it")
    if code in _EXPIRED or (code == "InvalidToken" and keys.session_token):
        cure = "renew it" if keys.is_of_site else "submit again with fresh credentials, or ones that last longer"
        return StoreError(f"{location}: the session token of {who} has expired, or is none ({code}); {cure}",
                          transient=keys.is_of_site)
    if code == "RequestTimeTooSkewed":
        return StoreError(f"{location}: the clock of this host and that of {host} differ by more than 15 minutes "
                          f"({code}); set this host's clock", transient=True)
    if code in ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"):
        right = response.get("Error", {}).get("Region") or response.get("ResponseMetadata", {}).get(
            "HTTPHeaders", {}).get("x-amz-bucket-region")
        return StoreError(f"{location}: the bucket is in another region{f', {right}' if right else ''} ({code}: "
                          f"{said}); set `region` in the site's `stores` or in the message's credentials")
    if code in _FULL or status == 507:
        return StoreError(f"{location}: {host} takes no more ({code or status}{said and f': {said}'}): its disk is "
                          "full, or a quota is used up; make room there, or have the quota raised", transient=True)
    if code in _WEATHER or (status >= 500 and status != 501):
        return Weather(f"{location}: {host} is in trouble ({code or status}: {said})")
    if status == 429:
        return Weather(f"{location}: {host} asks for less haste ({code or status})")
    if code == "InvalidObjectState":
        return StoreError(f"{location}: the object is archived ({code}); restore it in the store first")
    if code == "EntityTooLarge":
        return StoreError(f"{location}: too large for {host} ({code}: {said}); set a larger `transfer_part`")
    if status == 403 or code in ("AccessDenied", "403", "AllAccessDisabled"):
        return StoreError(f"{location}: {host} denies access to {who} ({code}{said and f': {said}'}). Either a right "
                          "on this object is lacking, or there is no such object and the right to list the bucket is "
                          "lacking: without that, S3 says the same of what is absent")
    return StoreError(f"{location}: {host} refuses the request ({code or status}: {said})")
