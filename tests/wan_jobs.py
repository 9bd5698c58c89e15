"""Small jobs of Wan from the command line: files, clips, and a run of two updates on them."""

from pathlib import Path

import tiny_wan
from tiny_wan import SIZE, SMALL, flags

from ipro_core.__main__ import main
from ipro_core.studio import Studio
from ipro_core.types import Framing
from ipro_core.wan_settings import DeviceSettings, WanFiles
from ipro_core.wan_studio import open_wan

OPENERS = ("load_text_encoder", "load_vae", "load_face_models", "load_video_model")
BOTH = ["I2V-A14B", "TI2V-5B"]


class Job:
    """Files, clips, and a run of two updates on them."""

    def __init__(self, folder: Path, kind: str):
        self.folder, self.kind, self.run = folder, kind, folder / "run"
        self.files = tiny_wan.write_files(folder / "files", kind)
        self.clips = tiny_wan.write_clips(folder / "clips")
        self.networks = flags(self.files, folder / "cache")
        assert main(self.train(self.run)) == 0

    def train(self, run: Path) -> list[str]:
        clips = ["--clips", str(self.clips), "--run", str(run), "--learning-rate", "0.05", "--warmup", "0"]
        return ["train", *clips, *self.networks, *SIZE, *SMALL]

    def studio(self) -> Studio:
        named = {flag.replace("-", "_"): str(file) for flag, file in self.files.items()}
        pack = Path(named.pop("faces"))
        files = WanFiles(cache=str(self.folder / "cache"), **named)
        return open_wan(files, pack, Framing(32, 32, 5), DeviceSettings())
