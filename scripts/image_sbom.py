# SPDX-License-Identifier: Apache-2.0
"""An image's software bill of materials in CycloneDX, from what is installed in it."""

from collections.abc import Mapping
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from kfloop.components.images import VERSION


def bill_of_materials(reference: str, inventory: Mapping[str, Any], revision: str = "") -> str:
    """Returns the CycloneDX 1.6 JSON of an image.

    Args:
        reference: The image.
        inventory: What `kfloop.components.image_inventory` printed in it.
        revision: Commit it was built from, or empty.
    """
    bom = Bom()
    image = Component(
        type=ComponentType.CONTAINER, name=reference, version=VERSION, bom_ref="image"
    )
    if revision:
        image.properties.add(Property(name="org.opencontainers.image.revision", value=revision))
    bom.metadata.component = image

    packages = {each["name"]: _python_package(each) for each in inventory["packages"]}
    needed = {name for each in inventory["packages"] for name in each["requires"]}
    others = [_python(inventory["python"]), *_system(inventory)]
    for component in (*packages.values(), *others):
        bom.components.add(component)
    for each in inventory["packages"]:
        asked = [packages[name] for name in each["requires"]]
        bom.register_dependency(packages[each["name"]], asked)
    tops = [component for name, component in packages.items() if name not in needed]
    bom.register_dependency(image, [*tops, *others])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def _python_package(package: Mapping[str, Any]) -> Component:
    name, version = package["name"], package["version"]
    license_text = package["license"]
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"pypi-{name}",
        purl=PackageURL("pypi", name=name, version=version),
        licenses=[LicenseFactory().make_from_string(license_text)] if license_text else [],
    )


def _python(version: str) -> Component:
    # The official images compile it; Debian's python3.11 is among the system's packages as well.
    return Component(
        type=ComponentType.APPLICATION,
        name="python",
        version=version,
        bom_ref="python",
        purl=PackageURL("generic", name="python", version=version),
    )


def _system(inventory: Mapping[str, Any]) -> list[Component]:
    """Returns the operating system and its packages, as far as they are known."""
    system = inventory["system"]
    if not system["id"]:
        return []
    distribution = f"{system['id']}-{system['version']}"
    return [
        Component(
            type=ComponentType.OPERATING_SYSTEM,
            name=system["id"],
            version=system["version"],
            description=system["name"],
            bom_ref="system",
        ),
        *(
            Component(
                type=ComponentType.LIBRARY,
                name=each["name"],
                version=each["version"],
                bom_ref=f"deb-{each['name']}-{each['architecture']}",
                purl=PackageURL(
                    "deb",
                    system["id"],
                    each["name"],
                    each["version"],
                    {"arch": each["architecture"], "distro": distribution},
                ),
            )
            for each in inventory["debian"]
        ),
    ]
