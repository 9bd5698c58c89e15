"""The graph's view of the core, a file for each room: nothing is computed here."""

import logging


def extension():
    """What ComfyUI asks for: the pack, with its nodes and the addresses the page reads."""
    try:
        from comfy_api.latest import ComfyExtension

        from . import (
            _study,
            clips,
            evaluation,
            evaluation_faces,
            faces,
            guards,
            host,
            models,
            person,
            rewards,
            sampling,
            training,
        )
        from ._monitor import add_routes

        rooms = (
            clips,
            person,
            faces,
            rewards,
            models,
            host,
            sampling,
            training,
            evaluation_faces,
            evaluation,
            guards,
        )
        nodes = [node for room in rooms for node in room.NODES]
    except Exception:
        logging.getLogger("ipro").exception("The nodes cannot be loaded.")  # the host tells one line of it
        raise

    class Ipro(ComfyExtension):
        async def get_node_list(self):
            add_routes()
            _study.add_routes()
            return nodes

    return Ipro()
