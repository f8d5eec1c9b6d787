"""Every head of every family patches; what is no model of a family, or is wrapped, works or is refused by name."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
import transformers as hf
from matrix import ENCODER, ENCODINGS, GQA, HOSTS, distance, learned_parameters, logits, randomise, tokens

from pe_retrofit import UnsupportedError, patch_model, status, unpatch_model

PREFIXES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3Text",
    "olmo2": "Olmo2",
    "phi3": "Phi3",
    "smollm3": "SmolLM3",
    "stablelm": "StableLm",
    "cohere": "Cohere",
    "glm": "Glm",
    "gpt_oss": "GptOss",
    "mixtral": "Mixtral",
    "gpt_neox": "GPTNeoX",
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
}
DECODER_HEADS = {"BertLMHeadModel", "RobertaForCausalLM", "ElectraForCausalLM"}


def heads() -> list[Any]:
    """(host, class name) of every model class of transformers that a host's config builds."""
    found = []
    for host, prefix in PREFIXES.items():
        for name in dir(hf):
            rest = name.removeprefix(prefix)
            if rest == name or not (rest == "Model" or rest.startswith("For") or rest == "LMHeadModel"):
                continue
            kind = getattr(hf, name)
            if inspect.isclass(kind) and issubclass(kind, hf.PreTrainedModel):
                found.append(pytest.param(host, name, id=name))
    return found


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    ids = tokens(2, 12)
    return {"input_ids": ids[None].repeat(2, 1, 1) if name.endswith("MultipleChoice") else ids}


def output_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor of what a head returns."""
    with torch.no_grad():
        return next(value for value in model(**inputs).values() if isinstance(value, torch.Tensor))


def test_the_list_of_heads_is_not_empty_by_accident() -> None:
    names = [case.values[1] for case in heads()]
    assert len(names) > 60
    assert {"LlamaForCausalLM", "BertForMaskedLM", "GPTNeoXForQuestionAnswering", "RobertaForTokenClassification"} <= {
        *names
    }


@pytest.mark.parametrize(("host", "name"), heads())
def test_every_head_patches(host: str, name: str) -> None:
    config = HOSTS[host].config(**({"is_decoder": True} if name in DECODER_HEADS else {}))
    torch.manual_seed(0)
    model = getattr(hf, name)(config).eval()
    inputs = inputs_of(name)
    original = output_of(model, inputs)
    keys = set(model.state_dict())
    for encoding in ("alibi", "t5", "native+t5"):
        ENCODINGS[encoding].patch(model)
        assert status(model).patched
        assert distance(output_of(model, inputs), original) > 1e-5
        assert keys <= set(model.state_dict()), "existing keys stay as they are"
        unpatch_model(model)
        assert torch.equal(output_of(model, inputs), original)
    assert set(model.state_dict()) == keys


def test_minilm_is_a_bert() -> None:
    """MiniLM is BERT with a pooler on top: 6 layers, 12 heads."""
    config = hf.BertConfig(**{**ENCODER, "num_hidden_layers": 6, "hidden_size": 48, "num_attention_heads": 12})
    model = hf.BertModel(config).eval()
    patch_model(model, "alibi")
    ids, mask = tokens(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[0, 20:] = 0
    with torch.no_grad():
        padded = model(ids, attention_mask=mask).last_hidden_state
        alone = model(ids[:1, :20]).last_hidden_state
    assert distance(padded[:1, :20], alone) < 1e-5
    assert status(model).num_layers == 6


SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def foreign() -> dict[str, Any]:
    """Models that fit no family, and modules that are no models."""
    return {
        "GPT2LMHeadModel": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)),
        "T5ForConditionalGeneration": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
        ),
        "MambaForCausalLM": lambda: hf.MambaForCausalLM(
            hf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
        ),
        "BloomForCausalLM": lambda: hf.BloomForCausalLM(
            hf.BloomConfig(vocab_size=97, hidden_size=32, n_layer=2, n_head=4)
        ),
        "OPTForCausalLM": lambda: hf.OPTForCausalLM(
            hf.OPTConfig(**SMALL, ffn_dim=40, max_position_embeddings=32, word_embed_proj_dim=32)
        ),
        "MptForCausalLM": lambda: hf.MptForCausalLM(hf.MptConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4)),
        "Linear": lambda: torch.nn.Linear(4, 4),
    }


@pytest.mark.parametrize("name", foreign())
@pytest.mark.parametrize(
    "call", [lambda m: patch_model(m, "alibi"), unpatch_model, status], ids=["patch", "un", "status"]
)
def test_other_models_are_refused_with_the_families(name: str, call: Any) -> None:
    with pytest.raises(UnsupportedError) as caught:
        call(foreign()[name]())
    text = str(caught.value)
    assert name in text
    for word in ("llama:", "gpt_neox:", "bert:", "Mistral", "Pythia", "DistilBERT"):
        assert word in text


def test_attention_that_cannot_be_chosen_is_refused() -> None:
    """DeBERTa is built like BERT, but computes its attention itself."""
    model = hf.DebertaV2Model(hf.DebertaV2Config(**SMALL, intermediate_size=40)).eval()
    for encoding in ("alibi", ["native", "t5"]):
        with pytest.raises(UnsupportedError, match="no AttentionInterface"):
            patch_model(model, encoding)
        assert not status(model).patched


@pytest.mark.parametrize("what", [None, "llama", {}, hf.LlamaConfig, HOSTS])
def test_what_is_no_model_is_a_type_error(what: Any) -> None:
    with pytest.raises(TypeError, match="A transformers model is needed"):
        patch_model(what, "alibi")


def test_two_models_in_one_are_refused_until_one_is_named() -> None:
    config = hf.BertConfig(**ENCODER)
    decoder = hf.BertConfig(**ENCODER, is_decoder=True, add_cross_attention=True)
    pair = hf.EncoderDecoderModel(encoder=hf.BertModel(config), decoder=hf.BertLMHeadModel(decoder)).eval()
    with pytest.raises(UnsupportedError, match=r"several models that could be meant \(BertModel, BertModel\)"):
        patch_model(pair, "alibi")
    inputs = {"input_ids": tokens(2, 12), "decoder_input_ids": tokens(2, 9, seed=1)}
    with torch.no_grad():
        before = pair(**inputs).logits
        for part in (pair.encoder, pair.decoder.bert):
            patch_model(part, "alibi")
            assert distance(pair(**inputs).logits, before) > 1e-4
            unpatch_model(part)
        assert torch.equal(pair(**inputs).logits, before)
    with pytest.raises(UnsupportedError, match=r"config of its own.*BertModel"):
        patch_model(pair.decoder, "alibi")  # the pair gave the head a config that its base model does not share


def test_composite_models_are_refused_and_their_text_model_is_not() -> None:
    text = {**GQA, "head_dim": 16, "layer_types": ["full_attention"] * 3}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = hf.Gemma3Config(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 4})
    model = hf.Gemma3ForConditionalGeneration(config).eval()
    with pytest.raises(UnsupportedError, match="composite model whose text part has a config of its own"):
        patch_model(model, "yarn", factor=2.0)
    assert not status(model).patched
    patch_model(model.model.language_model, "alibi")
    assert status(model).patched


def test_tied_embeddings_stay_tied() -> None:
    model = HOSTS["llama"].fresh(tie_word_embeddings=True)
    patch_model(model, ["native", "sinusoidal"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    unpatch_model(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# Wrapped, moved and altered models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["llama", "gpt_neox", "bert"])
def test_a_model_on_the_meta_device_is_refused(host: str) -> None:
    with torch.device("meta"):
        model = getattr(hf, HOSTS[host].model_class)(HOSTS[host].config())
    with pytest.raises(UnsupportedError, match="meta device"):
        patch_model(model, "alibi")


def test_a_compiled_model_is_refused() -> None:
    model = HOSTS["llama"].fresh()
    compiled = torch.compile(model, backend="eager")
    for call in (lambda: patch_model(compiled, "alibi"), lambda: unpatch_model(compiled)):
        with pytest.raises(UnsupportedError, match=r"compiled.*_orig_mod"):
            call()
    patch_model(compiled._orig_mod, "alibi")
    assert status(model).patched


@pytest.mark.parametrize("way", ["in place", "forward", "base", "layers"])
@pytest.mark.parametrize("encoding", ["alibi", "nope"])
def test_a_model_with_compiled_parts_does_not_run_old_code(way: str, encoding: str) -> None:
    """Compiled code does not look again whether a module has hooks."""
    model, ids = HOSTS["llama"].fresh(num_hidden_layers=2), tokens(1, 12)
    plain = logits(model, ids, use_cache=False)
    wanted = logits(ENCODINGS[encoding].patch(copy.deepcopy(model)), ids, use_cache=False)
    torch._dynamo.reset()
    if way == "in place":
        model.compile(backend="eager")
    elif way == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif way == "base":
        model.model = torch.compile(model.model, backend="eager")
    else:
        for index, layer in enumerate(model.model.layers):
            model.model.layers[index] = torch.compile(layer, backend="eager")
    assert distance(logits(model, ids, use_cache=False), plain) < 1e-5
    ENCODINGS[encoding].patch(model)
    assert distance(logits(model, ids, use_cache=False), wanted) < 1e-5
    unpatch_model(model)
    assert distance(logits(model, ids, use_cache=False), plain) < 1e-5


def test_tensor_parallel_models_are_refused() -> None:
    """By their parallel size here; what sharding itself does to parameters is below."""
    model = HOSTS["llama"].fresh()
    model.model._tp_size = 2
    with pytest.raises(UnsupportedError, match="sharded"):
        patch_model(model, "alibi")


def test_models_with_sharded_parameters_are_refused() -> None:
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module
    from torch.testing._internal.distributed.fake_pg import FakeStore

    init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        model = HOSTS["llama"].fresh()
        distribute_module(model.model.layers[0].self_attn, init_device_mesh("cpu", (2,)))
        with pytest.raises(UnsupportedError, match="sharded"):
            patch_model(model, "alibi")
    finally:
        destroy_process_group()


@pytest.mark.parametrize("host", ["llama", "gpt_neox", "bert"])
@pytest.mark.parametrize("encoding", ["alibi", "t5", "native+t5", "nope+t5", "sinusoidal", "yarn"])
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_dynamically_quantised_models_work(host: str, encoding: str) -> None:
    """The order does not matter: quantising the patched model or patching the quantised one."""
    if not HOSTS[host].rotates and encoding in ("nope+t5", "yarn"):
        encoding = "native+alibi"
    quantise = torch.ao.quantization.quantize_dynamic
    ids = tokens(2, 16)
    first = ENCODINGS[encoding].patch(quantise(HOSTS[host].fresh(), {torch.nn.Linear}, dtype=torch.qint8))
    second = quantise(ENCODINGS[encoding].patch(HOSTS[host].fresh()), {torch.nn.Linear}, dtype=torch.qint8)
    assert all(p.dtype == torch.float32 for _, p in learned_parameters(first))
    assert distance(logits(first, ids), logits(second, ids)) < 1e-4
    unpatch_model(first)
    plain = quantise(HOSTS[host].fresh(), {torch.nn.Linear}, dtype=torch.qint8)
    assert distance(logits(first, ids), logits(plain, ids)) < 1e-6


def peft_model(host: str = "llama") -> Any:
    import peft

    target = ["query_key_value"] if host == "gpt_neox" else ["query"] if host == "bert" else ["q_proj"]
    wrapped = peft.get_peft_model(HOSTS[host].fresh(), peft.LoraConfig(r=2, target_modules=target)).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return wrapped


@pytest.mark.parametrize("host", ["llama", "gpt_neox", "bert"])
def test_peft_wrapped_models_take_what_has_nothing_to_learn(host: str) -> None:
    wrapped, ids = peft_model(host), tokens(2, 20)
    before = logits(wrapped, ids)
    patch_model(wrapped, "alibi")
    patched = logits(wrapped, ids)
    assert distance(patched, before) > 1e-3
    merged = copy.deepcopy(wrapped).merge_and_unload()
    assert distance(logits(merged, ids), patched) < 1e-4
    assert status(merged).patched
    unpatch_model(wrapped)
    assert torch.equal(logits(wrapped, ids), before)


@pytest.mark.parametrize("encoding", ["t5", "native+t5", "alibi_learnable", "sinusoidal", "native+learned"])
def test_peft_wrapped_models_refuse_what_would_not_be_saved(encoding: str) -> None:
    wrapped = peft_model()
    with pytest.raises(UnsupportedError, match="modules_to_save"):
        ENCODINGS[encoding].patch(wrapped)
    assert not status(wrapped).patched


@pytest.mark.parametrize("host", ["llama", "bert", "roberta"])
@pytest.mark.parametrize("encoding", ["alibi", "t5", "sinusoidal", "learned", "native+sinusoidal", "yarn"])
def test_moved_and_cast_after_patching(host: str, encoding: str) -> None:
    """What a patch sets aside is no part of the model, and still follows it."""
    if not HOSTS[host].rotates and encoding == "yarn":
        encoding = "native+t5"
    model, ids = ENCODINGS[encoding].patch(HOSTS[host].fresh()).double(), tokens(2, 20)
    assert logits(model, ids).dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in model.parameters())
    unpatch_model(model)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert distance(logits(model, ids), logits(HOSTS[host].fresh().double(), ids)) < 1e-9


@pytest.mark.parametrize("host", ["llama", "stablelm", "gpt_neox", "bert"])
def test_frozen_training_and_random_state_stay_as_they_are(host: str) -> None:
    model = HOSTS[host].fresh()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    model.get_input_embeddings().eval()
    modes = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    patch_model(model, ["native", "t5"])
    assert torch.equal(torch.rand(4), expected), "patching must not draw random numbers"
    assert modes == {n: m.training for n, m in model.named_modules() if n in modes}
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [n for n, _ in learned_parameters(model)]
    unpatch_model(model)
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert not any(p.requires_grad for p in model.parameters())


def test_patched_in_inference_mode_trained_later() -> None:
    model, ids = HOSTS["llama"].fresh(), tokens(1, 12)
    with torch.inference_mode():
        patch_model(model, ["native", "t5"])
        model(ids)
    randomise(model)
    model(ids).logits.square().mean().backward()
    assert all(p.grad.abs().max() > 0 for _, p in learned_parameters(model))


def test_writing_through_data_is_seen() -> None:
    """It leaves no version behind; a table that was zero, and therefore left out, must come in."""
    model, ids = HOSTS["llama"].fresh(), tokens(1, 12)
    patch_model(model, ["native", "t5"])
    before = logits(model, ids)
    for _, parameter in learned_parameters(model):
        parameter.data.normal_()
    assert distance(logits(model, ids), before) > 1e-3
    for _, parameter in learned_parameters(model):
        parameter.data.zero_()
    assert distance(logits(model, ids), before) < 1e-5


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_another_attention_behind_our_back_is_refused_at_the_call(backend: str) -> None:
    model = patch_model(HOSTS["llama"].fresh(), "alibi")
    model.set_attn_implementation(backend)
    with pytest.raises(UnsupportedError, match="would drop the encoding without a word"):
        logits(model, tokens(1, 8))
    model.set_attn_implementation("pe_retrofit")
    assert torch.isfinite(logits(model, tokens(1, 8))).all()


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("encoding", ["nope", "yarn", "yarn/2", "native+sinusoidal", "nope/2"])
def test_encodings_that_need_no_kernel_run_on_any_attention(backend: str, encoding: str) -> None:
    ids, found = tokens(2, 24), []
    for chosen in ("sdpa", backend):
        model = HOSTS["llama"].fresh()
        model.set_attn_implementation(chosen)
        found.append(logits(ENCODINGS[encoding].patch(model), ids))
        assert model.config._attn_implementation == chosen
    assert distance(found[1], found[0]) < 1e-5
