"""From a model in memory to a repository that others load: save, card, push."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..progress import Report
from .card import write_card
from .pushing import Pushed, push_folder
from .saving import save_model


def publish(
    model: Any,
    tokenizer: Any,
    repo_id: str,
    *,
    form: str | None = None,
    code: bool = True,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    results: str | Path | None = None,
    recipe: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    language: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    dry_run: bool = False,
    report: Report | None = None,
) -> Pushed:
    """Publish a patched model, perhaps wrapped by peft, with a card.

    It is saved to a temporary folder, loaded again and compared, and pushed in one commit.

    Args:
        model: in evaluation mode.
        tokenizer: of the model, or None.
        repo_id: ``namespace/name`` on the Hub.
        form, code: see :func:`~pe_retrofit.hub.save_model`.
        private, revision, create_pr, message, token, endpoint, dry_run, report: see
            :func:`~pe_retrofit.hub.push_folder`.
        results: ``results.json`` of ``pe-retrofit eval``, or its folder: a table and pictures in the card.
        recipe: the file that made the model; in the card word for word.
        base_model: id of the base on the Hub. An adapter that was trained on a base from a local folder needs it:
            others load the base by that name.
        license, datasets, language: metadata of the card; by default what the files say.

    Returns:
        What was sent, or with ``dry_run`` would be.

    Raises:
        ConfigError, UnsupportedError: the arguments, the model or the files; nothing was sent.
        HubError: the Hub refused, or could not be reached.
    """
    with tempfile.TemporaryDirectory(prefix="pe_retrofit_") as work:
        folder = Path(work) / (repo_id.rpartition("/")[2] or "model")
        save_model(model, folder, tokenizer, form=form, code=code)
        if base_model is not None:
            name_base(folder, base_model)
        write_card(
            folder,
            results=results,
            recipe=recipe,
            base_model=base_model,
            license=license,
            datasets=datasets,
            language=language,
            name=repo_id,
        )
        return push_folder(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=create_pr,
            message=message,
            token=token,
            endpoint=endpoint,
            dry_run=dry_run,
            report=report,
        )


def name_base(folder: Path, base_model: str) -> None:
    """Let an adapter name its base as others know it; nothing for a whole model."""
    path = folder / "adapter_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = base_model
        path.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")
