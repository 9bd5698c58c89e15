"""ComfyUI's door to the pack. It imports nothing: until its nodes are here, use the command line."""
