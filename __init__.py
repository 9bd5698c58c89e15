"""ComfyUI's door to the pack. It imports nothing: the core is used from the command line until its nodes are here."""
