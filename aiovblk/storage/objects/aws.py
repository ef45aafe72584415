"""Find AWS credentials, profiles, endpoints and CA bundles as Amazon's own tools do.

The package ``obstore`` reads some environment variables, but no profiles (``~/.aws/credentials``,
``~/.aws/config``): those are read by botocore, of the package boto3.
"""

from __future__ import annotations

import importlib
import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...extras import extra
from ...text import quote

logger = logging.getLogger("aiovblk")

CREDENTIALS_FILE = "AWS_SHARED_CREDENTIALS_FILE"
CONFIG_FILE = "AWS_CONFIG_FILE"

_DEFAULTS = {CREDENTIALS_FILE: "~/.aws/credentials", CONFIG_FILE: "~/.aws/config"}

# Credentials in these variables, which obstore finds itself, take precedence over profiles, as they
# do for Amazon's tools.
_CREDENTIAL_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")

# Reported to obstore as the lifetime of a profile's credentials: it asks again at each request for
# those that live less than five minutes, but ten times a second at most.
_LIFETIME = timedelta(minutes=1)

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_OTHER_ENDPOINTS = ("AWS_METADATA_ENDPOINT", "AWS_STS_ENDPOINT")


def options_of_environment(given: dict[str, Any]) -> dict[str, Any]:
    """Return options for a store of obstore, from the environment and the files that it names.

    Args:
        given: options of the caller's, which take precedence.

    Raises:
        ValueError: a variable or a profile is invalid.
        MissingExtraError: there are profiles, and boto3, which reads them, is missing.

    """
    options: dict[str, Any] = {}
    if not given.keys() & {"access_key_id", "credential_provider", "skip_signature"}:
        profile = _profile()
        if profile is not None:
            options["credential_provider"] = profile
    options |= given
    client = _client_options(options)
    if client:
        options["client_options"] = client
    return options


def _profile() -> Profile | None:
    """Return the credentials of a profile; None without one, or where a variable has others."""
    if any(os.environ.get(name) for name in _CREDENTIAL_VARIABLES):
        return None
    profile = Profile() if any(path.exists() for path in _files()) else None
    # A file may hold no more than a region.
    return profile if profile is None or profile.found else None


def _client_options(options: dict[str, Any]) -> dict[str, Any]:
    client: dict[str, Any] = {}
    name, endpoint = _endpoint(options)
    if endpoint:
        check_endpoint(endpoint, name)
        if endpoint.lower().startswith("http:"):
            client["allow_http"] = True
    for name in _OTHER_ENDPOINTS:
        if os.environ.get(name):
            check_endpoint(os.environ[name], name)
    client |= options.get("client_options") or {}
    if bundle := _ca_bundle(options.get("credential_provider")):
        client.setdefault("root_certificate", bundle)
    return client


def _endpoint(options: dict[str, Any]) -> tuple[str, str]:
    """Return the option or variable that names the endpoint, and the endpoint; empty if none."""
    for name in ("aws_endpoint_url_s3", "endpoint", "endpoint_url", "aws_endpoint"):
        if options.get(name):
            return f"{name}=", str(options[name])
    for name in _ENDPOINTS:
        if os.environ.get(name):
            return name, os.environ[name]
    return "", ""


def check_endpoint(endpoint: str, name: str) -> None:
    """Refuse an endpoint that obstore would accept, and panic at.

    Args:
        endpoint: a URL.
        name: of the option or variable that it comes from.

    Raises:
        ValueError: it is no URL of a server.

    """
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        shown = quote(endpoint.rpartition("@")[2])
        raise ValueError(f"{name}: {shown!r} is no address of a store; write https://HOST[:PORT]")


def _ca_bundle(profile: object) -> bytes | None:
    """Return the CA certificates to trust besides those of the system."""
    path = os.environ.get("AWS_CA_BUNDLE")
    if not path and isinstance(profile, Profile):
        path = profile.ca_bundle
    if not path:
        return None
    try:
        bundle = Path(path).expanduser().read_bytes()
    except OSError as exc:
        raise ValueError(f"AWS_CA_BUNDLE: cannot read {path}: {exc.strerror}") from None
    if b"BEGIN CERTIFICATE" not in bundle:
        raise ValueError(f"AWS_CA_BUNDLE: no certificate in PEM form in {path}")
    return bundle


def _files() -> list[Path]:
    return [Path(os.environ.get(name) or _DEFAULTS[name]).expanduser() for name in _DEFAULTS]


def _versions() -> list[tuple[int, ...] | None]:
    return [_version(path) for path in _files()]


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Profile:
    """Provide a profile's credentials to obstore (a credential provider), and renew them.

    obstore asks at each request: botocore knows when they expire, and renews them in time,
    wherever they come from (a role, SSO, ``credential_process``). Files that have been rewritten
    are read again.

    Concurrency: obstore calls it in a thread of its own, one call at a time.

    Raises:
        MissingExtraError: boto3 is missing.
        Exception: the files are invalid; botocore has a class for each mistake.

    """

    def __init__(self) -> None:
        with extra("aws", f"the profiles in {' and '.join(map(str, _files()))}"):
            self._botocore = importlib.import_module("botocore.session")
        self._seen = _versions()
        self._session, self._credentials = self._load()
        region = self._session.get_config_variable("region")
        self.config: dict[str, str] = {"region": region} if region else {}
        """Options that obstore takes from a credential provider."""

    @property
    def found(self) -> bool:
        """Whether there are credentials."""
        return self._credentials is not None

    @property
    def ca_bundle(self) -> str | None:
        """The file of CA certificates that the profile trusts."""
        path: str | None = self._session.get_config_variable("ca_bundle")
        return path

    def __call__(self) -> dict[str, Any]:
        """Return the credentials, renewed if necessary."""
        self._refresh()
        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _LIFETIME,
        }

    def _load(self) -> tuple[Any, Any]:
        session = self._botocore.Session()
        return session, session.get_credentials()

    def _refresh(self) -> None:
        versions = _versions()
        if versions == self._seen:
            return
        self._seen = versions
        try:
            session, credentials = self._load()
        except Exception as exc:  # perhaps half written: read again once it has changed again
            logger.warning("AWS credentials were not read again: %s", quote(str(exc)))
            return
        if credentials is None:
            logger.warning(
                "AWS credentials were not read again: no profile has any; keeping the old ones"
            )
        else:
            self._session, self._credentials = session, credentials
