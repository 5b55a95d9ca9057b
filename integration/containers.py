# SPDX-License-Identifier: BSD-3-Clause
"""The container images of docker/, built by buildah from their Dockerfiles as they stand.

No registry is asked for debian:trixie-slim: mmdebstrap makes what stands for it, with the same
packages and the same apt sources, but for the mirror, which is the one that this host uses.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from integration import cache
from integration.debian import KEYRING, SUITE, host_packages, mirror

if TYPE_CHECKING:
    from integration.progress import LoggedStep

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = "images"  # of the results

HOST_TOOLS = {"mmdebstrap": "mmdebstrap", "buildah": "buildah"}

BASE = f"debian:{SUITE}-slim"
SOURCES = f"""\
Types: deb
URIs: {{mirror}}
Suites: {SUITE} {SUITE}-updates
Components: main
Signed-By: {KEYRING}
"""
DPKG_PATHS = tuple(f"path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man"))
# As in the official image, apt keeps neither the packages that it has installed nor indices.
APT_CONF = """\
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
EDITION = 2  # part of the fingerprints: raise it when code below changes what is built
BASE_RECIPE = (BASE, SOURCES, DPKG_PATHS, APT_CONF, EDITION)


class Image(NamedTuple):
    """One image: its name, its Dockerfile and its context, and what of that goes into it."""

    name: str
    dockerfile: str
    context: str
    content: str = ""


IMAGES = (
    Image("vfio-user-bridge", "docker/Dockerfile", ".", "vfio_user_bridge"),
    Image("qemu-vfio-user", "docker/Dockerfile.qemu", "docker"),
)


def carry(results: Path) -> None:
    """Put the images into the folder `images` of the results, as NAME.tar for `podman load`.

    :raise StepError: building one failed.
    """
    folder = results / FOLDER
    folder.mkdir(exist_ok=True)
    for image in IMAGES:
        shutil.copyfile(archive(image), folder / f"{image.name}.tar")


def archive(image: Image) -> Path:
    """Return `image` in the cache, a docker-archive, built first unless it is there.

    :raise StepError: building failed.
    """

    def build(part: Path, step: LoggedStep) -> None:
        host_packages(step, HOST_TOOLS)
        with tempfile.TemporaryDirectory(dir=cache.root()) as scratch:
            _build(image, base, Path(scratch), part, step)

    base = _base()
    recipe = (BASE_RECIPE, image, (CHECKOUT / image.dockerfile).read_text(), _digest(image.content))
    return cache.artefact(f"image-{image.name}", f"building the image {image.name}", recipe, build)


def _base() -> Path:
    """Return the file system of `BASE` in the cache, a tar file."""

    def build(part: Path, step: LoggedStep) -> None:
        host_packages(step, HOST_TOOLS)
        uri = mirror(step)
        sources = SOURCES.format(mirror=uri)
        step.run(
            "mmdebstrap",
            "--mode=root",
            "--variant=essential",
            "--format=tar",
            "--architectures=amd64",
            *(f"--dpkgopt={path}" for path in ("force-unsafe-io", *DPKG_PATHS)),
            '--aptopt=APT::Install-Recommends "false"',
            "--include=apt",
            f"--customize-hook=printf %s '{APT_CONF}' >\"$1/etc/apt/apt.conf.d/docker-clean\"",
            f"--customize-hook=printf %s '{sources}' >\"$1/etc/apt/sources.list.d/debian.sources\"",
            '--customize-hook=cd "$1" && rm etc/apt/sources.list etc/apt/apt.conf.d/99mmdebstrap'
            " var/cache/apt/*.bin",
            SUITE,
            part,
            f"deb [signed-by={KEYRING}] {uri} {SUITE} main",
        )

    return cache.artefact("image-base", f"making {BASE}", BASE_RECIPE, build)


def _build(image: Image, base: Path, scratch: Path, archive: Path, step: LoggedStep) -> None:
    buildah = (
        *("buildah", "--storage-driver=vfs"),
        *("--root", scratch / "root", "--runroot", scratch / "runroot"),
    )
    build = ("build", "--isolation=chroot", "--pull-never")
    unpacked = scratch / "Dockerfile"
    unpacked.write_text(f"FROM scratch\nADD {base.name} /\n")
    step.run(*buildah, *build, "--tag", BASE, "--file", unpacked, base.parent)
    dockerfile, context = CHECKOUT / image.dockerfile, CHECKOUT / image.context
    step.run(*buildah, *build, "--tag", image.name, "--file", dockerfile, context)
    step.run(
        *buildah, "push", image.name, f"docker-archive:{archive}:localhost/{image.name}:latest"
    )


def _digest(folder: str) -> str:
    """Return a fingerprint of what is in `folder` of the checkout, or "" for no folder."""
    if not folder:
        return ""
    digest = hashlib.sha256()
    for path in sorted((CHECKOUT / folder).rglob("*.py")):
        digest.update(f"{path}\0{path.read_text()}\0".encode())
    return digest.hexdigest()
