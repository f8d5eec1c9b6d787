"""Llama and every decoder built like it: one rotary module on the base model, ``self_attn`` in each layer."""

from .descriptor import Family

LLAMA = Family(
    name="llama",
    layers="layers",
    attention="self_attn",
    rotary="rotary_emb",
    packs_by_position=True,
    examples="Llama, Mistral, Mixtral, Qwen2, Qwen3, Gemma 1-3, OLMo 2, Phi-3, SmolLM3, StableLM",
)
