"""GPT-NeoX (Pythia): partial rotation, parallel residual, fused query-key-value."""

from .descriptor import Family

GPT_NEOX = Family(
    name="gpt_neox",
    layers="layers",
    attention="attention",
    rotary="rotary_emb",
    packs_by_position=True,
    examples="GPT-NeoX, Pythia",
)
