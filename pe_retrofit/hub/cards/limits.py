"""What a model is not good for, and what was done to it beside the patch."""

from __future__ import annotations

from ...registry import get_encoding
from .folder import PATCHED, Saved
from .recipe import Recipe
from .results import Results
from .run import STAGES, Calibrated, Run, Trained
from .text import MISSING, code, number, plain


def limits(saved: Saved, results: Results | None, training: Trained | None, recipe: Recipe | None) -> list[str]:
    """One sentence or two each."""
    found = []
    if results is None:
        found.append("Nothing was measured for this card: no number in it says that the model is any good.")
    elif not any(task.scored for task in results.tasks):
        found.append("Retrieval was not measured. Low perplexity does not show that a model looks back.")
    else:
        found.append(
            "Low perplexity does not show that a long context is used: read it together with retrieval, and within the "
            "lengths that were measured."
        )
    if saved.replaces and training is None and not (recipe is not None and recipe.trains):
        found.append(
            "Replacing a positional encoding outright damages a pretrained model, from the first step on, and nothing "
            "here says that this one was trained afterwards. Calibrate and train it before use."
        )
    elif saved.replaces:
        found.append(
            "Its positional encoding was replaced outright; what the training after it did not heal stays lost."
        )
    taught = [name for name in saved.names if get_encoding(name).info.breaks]
    if taught:
        found.append(f"{', '.join(map(code, taught))}: a baseline for teaching, which lacks what a model needs in use.")
    if saved.form == PATCHED:
        found += [
            "It loads through the Auto classes, with the plugin imported or with code that comes along; an explicit "
            "class such as `LlamaForCausalLM.from_pretrained` stops with an error.",
            "Encodings with kernels of their own run on the attention implementation `pe_retrofit`, not on "
            "FlashAttention, and refuse context parallelism.",
        ]
    late = [name for name in saved.names if name in ("dynamic", "longrope")]
    if late:
        found.append(
            f"{', '.join(map(code, late))}: a reloaded model follows transformers' own rule, which chooses frequencies "
            "per call and disagrees between cached and uncached runs beyond the trained length."
        )
    return found


def trained(training: Trained | None, recipe: Recipe | None, run: Run | None) -> str:
    """What the fine-tune came to, or that nothing tells of one."""
    done = [stage for stage in STAGES if run is not None and stage in run.steps]
    return (f"Steps of the run: {', '.join(done)}. " if done else "") + _fine_tuned(training, recipe)


def _fine_tuned(training: Trained | None, recipe: Recipe | None) -> str:
    if training is None:
        if recipe is None:
            return "Nothing in this folder says whether it was trained after its encoding was changed."
        return "By the recipe below." if recipe.trains else "None: the recipe patches and calibrates only."
    parts = [f"{MISSING if training.steps is None else f'{training.steps:,}'} steps"]
    parts.append(f"{MISSING if training.tokens is None else f'{training.tokens:,}'} tokens")
    if training.text:
        sha = f" (sha256 {code(training.sha256)})" if training.sha256 else ""
        parts.append(f"of {plain(training.text)}{sha}")
    parts.append(f"loss at the end {number(training.loss)}")
    parts.append(f"on held-out text {number(training.held_out_loss)}")
    return f"{', '.join(parts)}."


def calibrated(found: Calibrated | None) -> str:
    """What calibration came to; empty without one."""
    if found is None:
        return ""
    words = [
        f"Fitted to the original's attention over {MISSING if found.tokens is None else f'{found.tokens:,}'} tokens"
        f"{f' of {plain(found.text)}' if found.text else ''}, in closed form, without training. Divergence from the "
        f"original's attention, in nats per head and query: {number(found.before)} before, {number(found.after)} after."
    ]
    if found.perplexity:
        stock, default, after = (number(found.perplexity[key]) for key in ("stock", "default", "calibrated"))
        words.append(f"Perplexity on other text: original {stock}, default start {default}, calibrated {after}.")
    if found.kept:
        words.append("Which layers keep their native encoding was chosen by measuring each.")
    return " ".join(words)
