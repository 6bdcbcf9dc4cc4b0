"""Data sets of LeRobot, versions 2.1 and 3.0, read and written as files: Parquet and JSON, without the package.

    meta/info.json                  features, frames per second, counts    meta/stats.json     statistics (3.0)
    meta/episodes/*/*.parquet       length and position of every episode    (2.1: meta/episodes.jsonl)
    data/*/*.parquet                one row per frame: features, episode_index, frame_index, index, ...

``read`` returns ``Demonstrations``, ``read_recording`` all that is stored, ``write`` makes version 3.0. Cameras may
have any name, as in LeRobot. Images in the rows are read with pillow. Videos raise an error unless ``obs_keys`` leaves
them out, so that no policy loses its images silently. Task descriptions are not read: several tasks give a warning, and
so do all other unused features. Needs pyarrow (``pip install 'denoiserl[data]'``).
"""

from denoiserl.data.formats.lerobot.reader import read, read_recording
from denoiserl.data.formats.lerobot.writer import write

__all__ = ["read", "read_recording", "write"]
