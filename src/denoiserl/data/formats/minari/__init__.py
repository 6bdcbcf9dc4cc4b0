"""Minari data sets, read and written as files; the package itself is not needed.

A data set is a folder with ``metadata.json`` (spaces, counts) and ``main_data.hdf5`` (a group per episode), usually
called ``data`` inside the data set's own folder. In the arrow layout, it has a folder of Arrow files per episode.

    observations   arrays [L + 1, ...], or groups of them where the space is a Dict or Tuple
    actions, rewards, terminations, truncations   [L, ...]
    infos          the environment's infos, among them ``success``

``read`` returns ``Demonstrations``, ``read_recording`` all that is stored; ``write`` makes a data set that Minari
loads. Needs h5py (``pip install 'denoiserl[data]'``), the arrow layout pyarrow, images pillow.
"""

from denoiserl.data.formats.minari.observations import choose
from denoiserl.data.formats.minari.reader import FILE, METADATA, Outside, column, read, read_recording
from denoiserl.data.formats.minari.writer import write

__all__ = ["FILE", "METADATA", "Outside", "choose", "column", "read", "read_recording", "write"]
