"""Everyone in a video, followed by place first: who stands there is asked later, so that a swap can be seen.

`tracks` follows a person and lets go where somebody else stands; here the place goes on, and the person
counts only where places leave a doubt: where people cross, or after a cut.
"""

import numpy as np

from .matching import match
from .tracks import SAME_PERSON, SAME_PLACE, SeenFaces, overlap

PATIENCE = 8
"""Frames for which a place waits for a face that was lost."""


def follow_places(seen: SeenFaces, *, same: float = SAME_PERSON) -> list[dict[int, int]]:
    """The faces of each place, frame → index of the face, in order of appearance.

    Args:
        same: the cosine from which a face that stands elsewhere may go on a place's track.
    """
    tracks: list[dict[int, int]] = []
    for t, faces in enumerate(seen.detections):
        waiting = [track for track in tracks if t - max(track) <= PATIENCE]
        worth = np.full((len(waiting), len(faces)), -np.inf)
        for row, track in enumerate(waiting):
            at = max(track)
            last, last_D = seen.detections[at][track[at]], seen.embeddings[at][track[at]]
            for column, face in enumerate(faces):
                place, person = overlap(last, face).item(), (last_D @ seen.embeddings[t][column]).item()
                if place >= SAME_PLACE or person >= same:
                    # A face that stays where it was outweighs one elsewhere that is more like the last.
                    worth[row, column] = 2 * place + person
        matched = match(worth, missing=-1.0)
        for track, column in zip(waiting, matched, strict=True):
            if column is not None:
                track[t] = column
        tracks += [{t: column} for column in range(len(faces)) if column not in matched]
    return tracks
