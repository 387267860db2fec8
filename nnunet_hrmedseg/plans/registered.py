"""The classes of registered networks, as attributes by the name of their spec.

A plan names a network by the dotted path of its class. For a class in a user's file, whose module nnU-Net forgets after
it has found the trainer in it, that path is `nnunet_hrmedseg.plans.registered.NAME`.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    from nnunet_hrmedseg.plans.specs import NETWORKS

    spec = NETWORKS.get(name)
    if spec is None:
        raise AttributeError(f"no network {name!r} is registered; is the module of its trainer imported?")
    return spec.load_network()
