# SPDX-License-Identifier: Apache-2.0
"""What features are about."""

from feast import Entity, ValueType

aircraft = Entity(name="aircraft", join_keys=["tailnum"], value_type=ValueType.STRING)
carrier = Entity(name="carrier", join_keys=["carrier"], value_type=ValueType.STRING)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
destination = Entity(name="destination", join_keys=["dest"], value_type=ValueType.STRING)
