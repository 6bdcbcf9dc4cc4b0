"""Language: train masked-diffusion language models, and improve them by a verifier."""
