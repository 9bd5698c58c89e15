"""ComfyUI's door to the pack: it imports nothing before the host asks, and the core runs without a host."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import extension

    return extension()
