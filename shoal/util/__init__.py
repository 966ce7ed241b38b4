"""What programs use beside tasks, actors and objects, under the names of Ray's `ray.util`.

`actor_pool` spreads work over actors; `queue` is a queue between processes (import it by name: `shoal.util.queue`); `placement_group`
reserves resources together, `scheduling_strategies` says where work runs; `lookups` answers questions about the session. Serialisation
belongs to `shoal.serial`; its entrances for users are named here.
"""

from typing import TYPE_CHECKING, Any

from shoal.serial.hooks import deregister_serializer, register_serializer
from shoal.util.actor_pool import ActorPool
from shoal.util.lookups import get_node_ip_address, list_named_actors
from shoal.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

if TYPE_CHECKING:
    from shoal.serial.inspection import inspect_serializability

__all__ = [
    "ActorPool",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: the search behind it would cost every start of a session some milliseconds.
    if name == "inspect_serializability":
        from shoal.serial.inspection import inspect_serializability

        return inspect_serializability
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
