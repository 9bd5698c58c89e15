"""Face crops by CLIP's image encoder in the place of ArcFace (the paper's Table 4): rewards only.

Who is followed through a video, a recogniser still says: to CLIP all faces are alike.
"""

from torch import Tensor

from ..scorer import ImageEncoder
from .recognizer import Recognizer


class ClipFace:
    """A `Recognizer` as pools and rewards see one."""

    def __init__(self, encoder: ImageEncoder, follower: Recognizer) -> None:
        """`follower`: tells people apart."""
        self.encoder, self.follower = encoder, follower
        self.name, self.dim = encoder.name, encoder.dim
        self.size = encoder.size
        """Side of the crops: aligned as ArcFace's are, as large as the encoder looks at."""

    def embed(self, crops_T3HW: Tensor) -> Tensor:
        """(T, dim), unit length, differentiable in the crops."""
        return self.encoder.embed_images(crops_T3HW)
