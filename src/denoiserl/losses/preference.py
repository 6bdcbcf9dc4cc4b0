"""Preference losses: the winner should gain more over the reference than the loser."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from denoiserl.advantages.checks import require_no_grad, same_shape


def margin(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Tensor:
    """Return ``(win − ref_win) − (lose − ref_lose)``, ``[*b]``: the implicit reward gap in nats.

    It is positive if the pair is ranked correctly: ``(margin(...) > 0).float().mean()`` is the implicit accuracy.
    """
    same_shape(win=win, lose=lose, ref_win=ref_win, ref_lose=ref_lose)
    return (win - ref_win) - (lose - ref_lose)


def dpo(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float) -> Tensor:
    """Return the loss of direct preference optimisation, ``−log σ(β margin)``. All ``[*b]``; returns ``[*b]``.

    At the reference it is log 2 and its gradient is −β/2 ∇(win − lose). The four are log-probs of chains or steps
    (``rescore``: D3PO), or ELBO terms with noise and time shared by all four (``elbo``: Diffusion-DPO, with −½ the
    squared error as the log-prob). The mean of the losses over draws is Diffusion-DPO's upper bound (Jensen). The mean
    of the ELBO draws before the loss is a tighter bound with more draws.

    β absorbs the reduction: with mean errors it is as many times larger as the sample has dimensions (5000 on images).
    Rafailov et al., arXiv 2305.18290; Wallace et al., 2311.12908.
    """
    require_no_grad(ref_win=ref_win, ref_lose=ref_lose)
    return F.softplus(-beta * margin(win, lose, ref_win, ref_lose))
