"""What a vision-language model is asked of a shot: is the face covered, is this a person, what happens (5.1).

Each question on faces is asked twice, the second time of the mirrored picture: an answer that depends on left
and right is none.
"""

from io import BytesIO
from pathlib import Path

from .curation import Answers
from .manifest import sheet_path
from .measures import ShotMeasures
from .vision import Schema, VisionClient

# Models fill in names in their order: what is seen comes before what is concluded.
OCCLUSION: Schema = {
    "covered_by": {"type": "string", "maxLength": 80},
    "occluded": {"type": "string", "enum": ["yes", "no"]},
    "depicted": {"type": "string", "enum": ["person", "drawing"]},
}
OCCLUSION_QUESTION = """The picture shows crops of one face from different moments of a video, in rows.
covered_by: what lies in front of the face in any crop, such as a phone, a mask, a hand, a microphone or
sunglasses; nothing if it is free. Hair, a beard, clear glasses, shadow and a turned head cover nothing.
occluded: yes if such a thing hides the eyes, the nose or the mouth in any crop, else no.
depicted: person if this is a real person that was filmed, drawing if it is drawn, animated or a figure.
Answer with one JSON object with exactly these names."""
CAPTION: Schema = {"caption": {"type": "string", "minLength": 15, "maxLength": 400}}
CAPTION_QUESTION = """The picture shows frames of one video shot in their order, in rows. Write its caption as
the prompt for a video model that is given the first frame: one or two plain sentences on what the person
does, how head, face and body move, and what the camera does. Do not say who the person is or what they look
like: no age, skin, hair, face or clothes; the first frame shows them. Answer with one JSON object with the
one name caption."""


def ask(client: VisionClient, folder: Path, shot: ShotMeasures, *, caption: bool) -> Answers:
    """What the model says of a measured shot.

    Args:
        folder: of the curation, which holds the pictures.
        caption: whether one is wanted.

    Raises:
        ValueError: nobody answers.
    """
    answers = Answers(model=client.settings.vision_model)
    faces, frames = sheet_path(folder, shot, "faces"), sheet_path(folder, shot, "frames")
    if faces.exists():
        once, again = (
            client.ask(OCCLUSION_QUESTION, [_jpeg(faces, mirrored=mirrored)], OCCLUSION)
            for mirrored in (False, True)
        )
        if once and again:
            agree = once["occluded"] == again["occluded"]
            drawn = "drawing" in once["depicted"] and "drawing" in again["depicted"]
            answers = Answers(
                occluded=once["occluded"] if agree else "unsure",
                covered_by=once["covered_by"],
                depicted="drawing" if drawn else "person",
                model=answers.model,
            )
    said = client.ask(CAPTION_QUESTION, [_jpeg(frames)], CAPTION) if caption and frames.exists() else None
    if said:
        answers = Answers(
            answers.occluded, answers.covered_by, answers.depicted, said["caption"].strip(), answers.model
        )
    return answers


def _jpeg(path: Path, *, mirrored: bool = False) -> bytes:
    if not mirrored:
        return path.read_bytes()
    from PIL import Image, ImageOps

    buffer = BytesIO()
    with Image.open(path) as picture:
        ImageOps.mirror(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
