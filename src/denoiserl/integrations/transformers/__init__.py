"""Language models of transformers, unmodified: masked ones and left-to-right ones.

``masked_lm(model, mask)`` and ``causal_lm(model)`` return denoisers of tokens; ``masked_policy`` and ``causal_policy``
add a decoder. With ``attend="all"`` a left-to-right architecture becomes a masked model: a 4-d attention mask shows it
every position. Tokenisers are not part of a policy: prompts are lists of ids, see ``canvas``.

Padding is hidden from the model, on either side of a canvas: a short prompt gives the same numbers as the prompt
alone. Models that read padding in spite of their mask refuse it (ConvBERT, MobileBERT, Nystromformer, YOSO;
RecurrentGemma on the left). Text after an end token is neither drawn nor learned from (``end=``, see ``Masked``).
``vocab=len(tokenizer)`` cuts rows without a token. Gradient checkpointing (``model.gradient_checkpointing_enable()``)
works, without dropout.
"""

from denoiserl.integrations.transformers.network import Attend, Net
from denoiserl.integrations.transformers.policies import canvas, causal_lm, causal_policy, masked_lm, masked_policy
from denoiserl.integrations.transformers.sizes import check_length, counts_from, size, tokens

__all__ = [
    "Attend",
    "Net",
    "canvas",
    "causal_lm",
    "causal_policy",
    "check_length",
    "counts_from",
    "masked_lm",
    "masked_policy",
    "size",
    "tokens",
]
