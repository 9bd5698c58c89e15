"""The embedded default: a procedural world of faces with its own small networks, complete and offline."""
