"""What a curation may be told: knobs alone, so that a menu of them imports no network."""

from dataclasses import dataclass

from ..types import knob

KEY, ENDPOINT = "IPRO_VISION_KEY", "IPRO_VISION_ENDPOINT"
"""Environment variables: the key, for servers that want one, and where the server is. A graph has no widgets
for them: a stranger's workflow would send pictures of yours to an address of theirs, yours carry your key."""
OLLAMA = "http://127.0.0.1:11434/v1"


@dataclass(frozen=True)
class MeasureSettings:
    looks: float = knob(4.0, "Frames a second in which faces are looked for.", min=0.1, max=120)
    longest: float = knob(
        12.0, "Seconds: longer shots are cut into equal pieces that are not longer; 0: never.", min=0
    )


@dataclass(frozen=True)
class CurationSettings:
    """Limits; a limit of 0 asks for nothing."""

    least_side: int = knob(320, "Least shorter side of a video in pixels; the paper collects 960.", min=0)
    least_fps: float = knob(16.0, "Least frames a second.", min=0)
    least_seconds: float = knob(2.0, "Least length of a shot in seconds; 81 frames of Wan are 5.1.", min=0)
    least_coverage: float = knob(0.4, "Least share of frames that show a face (5.1).", min=0, max=1)
    largest_face: float = knob(
        100.0,
        "Largest face, longer side in pixels were the video's shorter side 960 (5.1: small faces); 0: any.",
        min=0,
    )
    smallest_face: float = knob(
        24.0, "Smallest face, shorter side in pixels of the file: below 24 a recogniser sees noise.", min=0
    )
    most_people: int = knob(1, "Most people in a shot; 0: any number.", min=0)
    person_share: float = knob(
        0.2, "Share of the frames from which somebody counts as one of the people.", min=0, max=1
    )
    least_alike: float = knob(
        0.45, "Least mean cosine between a person's faces: mixed people give 0.2 to 0.35.", min=0, max=1
    )
    least_sharpness: float = knob(0.25, "Least sharpness of the face; blurred ones lie at 0.2.", min=0)
    least_light: float = knob(0.1, "Least mean luma of the face.", min=0, max=1)
    most_light: float = knob(0.9, "Most mean luma of the face.", min=0, max=1)
    most_clipped: float = knob(0.25, "Largest share of the face that is black or white.", min=0, max=1)
    least_turns: float = knob(
        0.0,
        "Least travel of the nose to the side, in face sizes, so that a clip shows several views of a face.",
        min=0,
    )
    least_distance: float = knob(
        6.0, "Bits of 64 that a shot must differ by from every other file's (dHash); 0: copies stay.", min=0
    )
    known_licence: bool = knob(False, "Whether a clip's licence and consent must be known.")
    same_person: float = knob(0.35, "Cosine from which faces of two shots are one person's.", min=-1, max=1)
    evaluation_share: float = knob(
        0.2, "Share of the kept shots that is set apart for evaluation, person by person.", min=0, max=1
    )


@dataclass(frozen=True)
class VisionSettings:
    vision_model: str = knob(
        "",
        "Name of a vision-language model that judges occlusion and writes captions; empty: nobody is asked.",
    )
    vision_endpoint: str = knob(
        "",
        f"OpenAI-compatible address that serves it; pictures of the clips go there. Empty: ${ENDPOINT}, else "
        f"Ollama's on this machine, {OLLAMA}. A key, where one is wanted: ${KEY}.",
    )
    vision_timeout: float = knob(120.0, "Seconds to wait for an answer.", min=0.1)
    vision_tries: int = knob(3, "How often a question is asked until it is answered well.", min=1)
