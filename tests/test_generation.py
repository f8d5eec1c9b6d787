"""Transformers' own generation on patched models: every way of decoding agrees with passes that use no cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix import ENCODINGS, HOSTS, PAD, VOCAB, distance, logits, tokens
from transformers import DynamicCache

NAMES = ["alibi", "t5", "nope", "dynamic", "yarn", "native+t5", "longrope", "sinusoidal", "dynamic+alibi"]
PROMPT, NEW = 28, 8
"""Prompt and new tokens: generation crosses the trained length of 32."""

CASES = [
    *[(host, name) for host in ("llama", "gpt_neox") for name in NAMES],
    *[(host, name) for host in ("mistral", "gemma3", "phi3") for name in ("alibi", "dynamic", "longrope", "nope+t5")],
    *[("llama", name) for name in ("conv", "native+conv", "recurrent", "random")],
    *[("llama", name) for name in ("fope", "swan")],
    ("gpt_neox", "conv"),
    ("gpt_neox", "rnope"),
    ("gemma3", "native+recurrent"),
    *[
        ("llama", name)
        for name in ("native+shaw", "shaw_values", "transformer_xl", "cope", "self_extend", "lm_infinite")
    ],
    *[("gpt_neox", name) for name in ("native+deberta", "rerope_leaky", "string")],
    *[("gemma3", name) for name in ("native+cope", "dual_chunk", "self_extend+shaw")],
    ("stablelm", "alibi"),
    ("gpt_oss", "t5"),
    ("gemma2", "alibi"),
]
every = pytest.mark.parametrize(("host", "name"), CASES, ids=lambda value: value)
few = pytest.mark.parametrize(
    ("host", "name"), [c for c in CASES if c[0] in ("llama", "gemma3")], ids=lambda value: value
)


def patched(host: str, name: str, **more: Any) -> Any:
    """In float64, so that no choice of a token hangs on rounding."""
    model = ENCODINGS[name].patch(HOSTS[host].fresh(**more).double())
    model.generation_config.pad_token_id = PAD
    return model


def options(**more: Any) -> dict[str, Any]:
    return {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD, **more}


def greedy(model: Any, ids: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """By hand: one whole pass per token."""
    for _ in range(new):
        chosen = logits(model, ids, use_cache=False)[:, -1].argmax(-1)
        ids = torch.cat((ids, chosen[:, None]), 1)
    return ids


@every
def test_greedy(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    wanted = greedy(model, ids)
    for cache in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(model.generate(ids, **options(**cache)), wanted), cache


@every
def test_left_padded_batch(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(3, PROMPT)
    ids[0, :9], ids[2, :4] = PAD, PAD
    mask = (ids != PAD).long()
    found = model.generate(ids, attention_mask=mask, **options())
    for row in range(3):
        alone = greedy(model, ids[row : row + 1, mask[row].argmax() :])
        assert torch.equal(found[row, PROMPT:], alone[0, -NEW:]), f"row {row}"
    static = model.generate(ids, attention_mask=mask, **options(cache_implementation="static"))
    assert torch.equal(static, found)


@every
def test_sampling_is_repeatable_and_needs_no_cache(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    found = []
    for cache in (True, True, False):
        torch.manual_seed(11)
        found.append(model.generate(ids, **options(do_sample=True, temperature=0.9, top_k=0, use_cache=cache)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.manual_seed(12)
    assert not torch.equal(model.generate(ids, **options(do_sample=True, temperature=0.9, top_k=0)), found[0])


@every
def test_beam_search_scores_are_those_of_an_uncached_pass(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    ids[0, :5] = PAD
    mask = (ids != PAD).long()
    output = model.generate(
        ids,
        attention_mask=mask,
        **options(num_beams=4, num_return_sequences=3, output_scores=True, return_dict_in_generate=True),
    )
    assert torch.equal(
        output.sequences,
        model.generate(ids, attention_mask=mask, **options(num_beams=4, num_return_sequences=3, use_cache=False)),
    )
    for row, sequence in enumerate(output.sequences):
        start = int(mask[row // 3].argmax())
        text = sequence[None, start:]
        chances = logits(model, text, use_cache=False).log_softmax(-1)[:, :-1].gather(2, text[:, 1:, None])
        score = chances[0, PROMPT - start - 1 :].sum() / NEW
        assert abs(score - output.sequences_scores[row]) < 1e-5


@every
def test_assisted_decoding(host: str, name: str) -> None:
    """Drafts are rejected, so the cache is cut back again and again."""
    model, ids = patched(host, name), tokens(1, PROMPT)
    wanted = greedy(model, ids)
    strangers = HOSTS["llama"].fresh(num_hidden_layers=1).double()
    assert torch.equal(model.generate(ids, assistant_model=strangers, **options()), wanted)
    if host in ("llama", "gpt_neox"):  # and the assistant a patched model itself: half its drafts are right
        twin = patched(host, name, num_hidden_layers=3)
        assert torch.equal(model.generate(ids, assistant_model=twin, **options()), wanted)


@every
def test_prompt_lookup(host: str, name: str) -> None:
    model = patched(host, name)
    ids = tokens(1, PROMPT // 2).repeat(1, 2)  # repeats itself, so that there is something to look up
    wanted = greedy(model, ids)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **options()), wanted)


def contrastive(model: Any, input_ids: torch.Tensor, generation_config: Any, **kwargs: Any) -> torch.Tensor:
    """Contrastive search (Su et al. 2022, arXiv 2202.06417) as ``generate(custom_generate=...)`` runs it.

    Each step forks the cache into ``top_k`` candidates per row, scores them by likelihood less similarity to what was
    said, and keeps one. Transformers' own version lives on a hub and does to the cache what this one does.
    """
    k, alpha, rows = generation_config.top_k, generation_config.penalty_alpha, input_ids.shape[0]
    mask, cache = kwargs["attention_mask"], DynamicCache()
    position_ids = (mask.cumsum(1) - 1).clamp_min(0)
    output = model(
        input_ids, attention_mask=mask, position_ids=position_ids, past_key_values=cache, output_hidden_states=True
    )
    said, last = output.hidden_states[-1], output.logits[:, -1]
    for _ in range(generation_config.max_new_tokens):
        chances, candidates = last.softmax(-1).topk(k, dim=-1)
        mask = torch.cat((mask, mask.new_ones(rows, 1)), 1)
        cache.batch_repeat_interleave(k)
        output = model(
            candidates.reshape(-1, 1),
            attention_mask=mask.repeat_interleave(k, 0),
            position_ids=(mask.sum(1, keepdim=True) - 1).repeat_interleave(k, 0),
            past_key_values=cache,
            output_hidden_states=True,
        )
        chosen, said = choose(chances, output.hidden_states[-1].view(rows, k, -1), said, mask[:, :-1], alpha)
        kept = torch.arange(rows) * k + chosen
        cache.batch_select_indices(kept)
        last = output.logits[kept, -1]
        input_ids = torch.cat((input_ids, candidates.gather(1, chosen[:, None])), 1)
    return input_ids


def choose(
    chances: torch.Tensor, states: torch.Tensor, said: torch.Tensor, mask: torch.Tensor, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Best candidate of each row, and what was said with its state appended."""
    similar = torch.nn.functional.cosine_similarity(states[:, :, None], said[:, None], dim=-1)
    penalty = similar.masked_fill(mask[:, None] == 0, -1.0).amax(-1)
    chosen = ((1 - alpha) * chances - alpha * penalty).argmax(-1)
    rows = torch.arange(len(chosen))
    return chosen, torch.cat((said, states[rows, chosen][:, None]), 1)


def contrastive_without_cache(model: Any, ids: torch.Tensor, k: int, alpha: float, new: int) -> torch.Tensor:
    """The same by whole passes, one row at a time."""
    for _ in range(new):
        with torch.no_grad():
            output = model(ids, use_cache=False, output_hidden_states=True)
            chances, candidates = output.logits[:, -1].softmax(-1).topk(k, dim=-1)
            forks = torch.cat((ids.repeat(k, 1), candidates.view(k, 1)), 1)
            states = model(forks, use_cache=False, output_hidden_states=True).hidden_states[-1][:, -1]
        said = output.hidden_states[-1]
        chosen, _ = choose(chances, states[None], said, torch.ones_like(ids), alpha)
        ids = torch.cat((ids, candidates[:, chosen]), 1)
    return ids


@every
def test_contrastive_search(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    ids[0, :6] = PAD
    mask = (ids != PAD).long()
    found = model.generate(
        ids,
        attention_mask=mask,
        custom_generate=contrastive,
        **options(penalty_alpha=0.6, top_k=4, max_new_tokens=10, min_new_tokens=0),
    )
    for row, start in ((0, 6), (1, 0)):
        alone = contrastive_without_cache(model, ids[row : row + 1, start:], 4, 0.6, 10)
        assert torch.equal(found[row, PROMPT:], alone[0, -10:]), f"row {row}"


@few
def test_a_conversation_goes_on_from_its_cache(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(1, 15)
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, past_key_values=cache, **options(max_new_tokens=6, min_new_tokens=6))
    longer = torch.cat((first, tokens(1, 5, seed=4)), 1)
    found = model.generate(longer, past_key_values=cache, **options())
    assert torch.equal(found, greedy(model, longer))


@few
def test_prefill_in_chunks(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    assert torch.equal(model.generate(ids, **options(prefill_chunk_size=8)), greedy(model, ids))


@few
def test_generation_from_embeddings(host: str, name: str) -> None:
    model, ids = patched(host, name), tokens(2, PROMPT)
    found = model.generate(inputs_embeds=model.get_input_embeddings()(ids).detach(), **options())
    assert torch.equal(found, greedy(model, ids)[:, PROMPT:])


@pytest.mark.parametrize("host", ["llama", "gpt_neox", "mistral"])
@pytest.mark.parametrize("name", ["alibi", "t5", "native+t5", "nope_warm"])
def test_attentions_of_generation_are_those_of_the_eager_kernel(host: str, name: str) -> None:
    ids, found = tokens(1, 10), []
    for kernel in (None, "eager"):
        model = ENCODINGS[name].patch(HOSTS[host].fresh().double(), kernel=kernel)
        more = {"output_attentions": True, "output_logits": True, "return_dict_in_generate": True}
        found.append(model.generate(ids, **options(max_new_tokens=4, min_new_tokens=4, **more)))
    plain, eager = found
    assert torch.equal(plain.sequences, eager.sequences)
    for step, (mine, theirs) in enumerate(zip(plain.attentions, eager.attentions, strict=True)):
        for a, b in zip(mine, theirs, strict=True):
            assert a is not None, f"step {step} returned no weights"
            assert distance(a, b) < 1e-6
    assert distance(torch.stack(plain.logits), torch.stack(eager.logits)) < 1e-6
    whole = logits(model, plain.sequences, use_cache=False)
    assert distance(torch.stack(plain.logits, 1), whole[:, 9:-1]) < 1e-5


def test_texts_depend_on_prompt_and_encoding() -> None:
    """Guards the others: with these weights greedy text depends on its prompt and on the encoding."""
    texts = set()
    for name in ("alibi", "t5", "nope", "dynamic"):
        model = patched("llama", name)
        for seed in (0, 1):
            texts.add(tuple(greedy(model, tokens(1, PROMPT, seed=seed), 8)[0, PROMPT:].tolist()))
    assert len(texts) == 8
    assert all(0 <= token < VOCAB for text in texts for token in text)
