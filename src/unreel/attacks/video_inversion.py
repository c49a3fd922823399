"""Video inversion: a word that is learned on whole clips, through each recipient's own denoiser.

    v* = argmin_v  E_{(x0, y), e, t} || f_U(x_t, tau_phi(y_*; v), t) - g ||^2    x0: clips (C, F, h, w) of the concept

as in `cce`, whose pictures are stills of the model that was edited; here the attacker has the video model and clips of
it, so that the word may say what is seen in frames together: what moves, and how it looks in later frames.

Reference: "PROBE", 2026, arXiv 2603.21547, which measures erasers of video models by it; the learned word is that of
`cce`.
Departures: as of `cce`; written from the paper's idea, as no code of it was at hand. A model of stills is asked too,
for which a clip has one frame.
"""

from typing import ClassVar

from unreel.attacks.cce import CCE
from unreel.validation import checked


@checked
class VideoInversion(CCE):
    """The attack; values and their sources are in conf/attack/video_inversion.yaml."""

    searches_on = "recipient"
    whole: ClassVar[bool] = True
