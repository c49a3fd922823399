"""Few-shot unlearning of the text encoder: gradient ascent on the donor's denoising loss over a few images.

    L(phi) = - E_{(x0, y), e, t} || f_U(x_t, tau_phi(y), t) - g ||^2                                  (card 2)

with U frozen and g the target of the donor's prediction type. Bounded, it climbs only until the concept's caption helps
the donor no more than the same caption with the anchor y_a in its place:

    L(phi) = E relu( || f_U(x_t, tau_0(y_a), t) - g ||^2 - || f_U(x_t, tau_phi(y), t) - g ||^2 )

Reference: Masane Fuchi and Tomohiro Takagi, "Erasing Concepts from Text-to-Image Diffusion Models with Few-shot
Unlearning", BMVC 2024, arXiv 2405.07288; moved to video by Shiqi Liu and Yihua Tan, arXiv 2407.14209, 2024.
Departures: the bound (`bounded`), which is ours; it needs one more pass through U, without gradient. Zero shots are
Gaussian latents, where the released code draws them uniform and five-dimensional by a slip. No horizontal flip: shots
are encoded once, and a flip would double the cache for no measured gain.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from unreel.donors import Donor
from unreel.shots import Batch, Embeds


@dataclass(frozen=True)
class FewShot:
    """The loss; hyperparameters and their sources are in conf/method/few_shot*.yaml."""

    bounded: bool

    def loss(self, donor: Donor, batch: Batch, embeds: Embeds) -> dict[str, Tensor]:
        """Scalars: "loss" is minimised; "forget_error" is the donor's error under the concept's captions."""
        noisy = donor.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = donor.target(batch.latents, batch.noise, batch.timesteps).float()
        count = len(batch.latents)
        predicted = donor.predict(noisy, batch.timesteps, embeds.forget[:count])
        errors = (predicted - target).square().mean((1, 2, 3))
        if not self.bounded:
            return {"loss": -errors.mean(), "forget_error": errors.mean()}
        with torch.no_grad():
            anchored = donor.predict(noisy, batch.timesteps, embeds.anchors[:count])
            without = (anchored - target).square().mean((1, 2, 3))
        ascent = functional.relu(1 - errors / without)  # in units of the error without the concept
        return {"loss": ascent.mean(), "forget_error": errors.mean(), "anchor_error": without.mean()}
