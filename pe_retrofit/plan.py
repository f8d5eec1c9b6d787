"""From what the user asked for to what will be done: parse, check, refuse. Touches no model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .config import EncodingConfig
from .encodings.nope import NopeConfig
from .encodings.rope import RopeConfig
from .errors import ConfigError, UnsupportedError
from .patchers.family import Host
from .registry import NATIVE, config_from_dict, get_encoding
from .sites import (
    BiasEncoding,
    HostShape,
    InputEncoding,
    PiecewiseEncoding,
    RotationEncoding,
    ScoreEncoding,
)

SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass
class Plan:
    """What to install.

    Attributes:
        configs: the encodings, in the order given.
        keeps_native: the model's own encoding stays underneath.
        layers: indices of the layers concerned.
        all_layers: these are all the layers there are.
        trained_length: ``L`` of each host shape, in tokens.
        rotation / biases / input / scores: the configs by site (a piecewise rotation counts as a rotation).
    """

    configs: list[EncodingConfig]
    keeps_native: bool
    layers: list[int]
    all_layers: bool
    trained_length: int
    rotation: EncodingConfig | None = None
    biases: list[EncodingConfig] = field(default_factory=list)
    input: EncodingConfig | None = None
    scores: list[EncodingConfig] = field(default_factory=list)

    @property
    def keeps_order(self) -> bool:
        """Whether the model still tells positions by something else than biases and scores."""
        return self.keeps_native or not (self.rotation is None or isinstance(self.rotation, NopeConfig))

    @property
    def names(self) -> str:
        """For messages: ``alibi`` or ``native + t5``."""
        return " + ".join((["native"] if self.keeps_native else []) + [c.name for c in self.configs])

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The spec as JSON."""
        return ([{"name": "native"}] if self.keeps_native else []) + [c.to_dict() for c in self.configs]


def parse_spec(spec: Any, options: Mapping[str, Any]) -> tuple[list[EncodingConfig], bool]:
    """Configs and whether the native encoding is kept.

    Raises:
        TypeError: the spec is no name, config, mapping or list of these.
        UnknownEncodingError, ConfigError: a wrong name or option.
    """
    items = list(spec) if isinstance(spec, (list, tuple)) else [spec]
    if not items:
        raise ConfigError("The list of encodings is empty. Name at least one, e.g. ['native', 't5'].")
    if options and (len(items) > 1 or not isinstance(items[0], str)):
        raise ConfigError(
            f"Options {sorted(options)} were given beside a list or config object, so it is unclear whose they are. "
            "Put them into config objects, e.g. ['native', T5Config(num_buckets=64)]."
        )
    keeps, configs = False, []
    for item in items:
        if isinstance(item, Mapping) and item.get("name") in NATIVE and len(item) == 1:
            item = item["name"]
        if isinstance(item, str) and item in NATIVE:
            keeps = True
        elif isinstance(item, str):
            configs.append(get_encoding(item).Config.from_options(options))
        elif isinstance(item, EncodingConfig):
            get_encoding(item.name)
            configs.append(item)
        elif isinstance(item, Mapping):
            configs.append(config_from_dict(item))
        else:
            raise TypeError(
                f"An encoding must be a name, a config object or a list of these, got {type(item).__name__}: {item!r}."
            )
    return configs, keeps


def settle_rope(host: Host, configs: Sequence[EncodingConfig], keeps_native: bool) -> tuple[list[EncodingConfig], bool]:
    """On a model that rotates, ``rope`` without options is what it has."""
    if host.family.rotary is None:
        return list(configs), keeps_native
    others = [c for c in configs if c != RopeConfig()]
    return others, keeps_native or len(others) < len(configs)


def resolve_layers(layers: Any, count: int) -> list[int]:
    """Indices from None, an int, a slice or a sequence of ints; negative ones count from the end.

    Raises:
        TypeError, ConfigError: wrong type, out of range, repeated or none left.
    """
    if layers is None:
        return list(range(count))
    if isinstance(layers, slice):
        try:
            chosen = sorted(range(count)[layers])
        except (TypeError, ValueError) as error:
            raise ConfigError(f"layers={layers} is no slice of {count} layers: {error}.") from error
        if not chosen:
            raise ConfigError(f"layers={layers} selects none of the {count} layers (0 to {count - 1}).")
        return chosen
    if _whole(layers) is not None:
        layers = [layers]
    if not isinstance(layers, Iterable) or isinstance(layers, (str, bytes, Mapping)):
        raise TypeError(f"layers must be None, a slice or a list of layer indices, got {layers!r}.")
    given = list(layers)
    wrong = [i for i in given if _whole(i) is None]
    if wrong:
        raise TypeError(f"layers must hold whole numbers, got {wrong[:5]!r}.")
    chosen = [int(i) for i in given]
    outside = [i for i in chosen if not -count <= i < count]
    if outside:
        raise ConfigError(f"layers {outside[:5]} are out of range: the model has {count} layers, 0 to {count - 1}.")
    normal = [i % count for i in chosen]
    if not normal:
        raise ConfigError(f"layers is empty: name at least one of the {count} layers, or pass None for all.")
    if len(set(normal)) < len(normal):
        raise ConfigError(f"layers {sorted(normal)} name a layer twice.")
    return sorted(normal)


def _whole(value: Any) -> int | None:
    """An int from whatever is one (NumPy's and torch's too), never from a truth value; None otherwise."""
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def make_plan(host: Host, configs: Sequence[EncodingConfig], keeps_native: bool, layers: Any) -> Plan:
    """Check a request against a host model.

    Raises:
        UnsupportedError: the combination cannot be carried; the message says why and what would work.
    """
    chosen = resolve_layers(layers, len(host.layers))
    plan = Plan(
        configs=list(configs),
        keeps_native=keeps_native,
        layers=chosen,
        all_layers=len(chosen) == len(host.layers),
        trained_length=_trained_length(host, configs),
    )
    if not configs:
        raise UnsupportedError(
            "Keeping the native encoding and adding nothing changes nothing. Add an encoding, e.g. ['native', 't5']."
        )
    for config in configs:
        kind = get_encoding(config.name)
        _check_direction(host, config, chosen)
        if issubclass(kind, (RotationEncoding, PiecewiseEncoding)):
            if plan.rotation is not None:
                raise UnsupportedError(
                    f"{plan.rotation.name!r} and {config.name!r} both decide the rotation; a layer has one. Use one of "
                    "them, or patch different layers."
                )
            plan.rotation = config
        elif issubclass(kind, (BiasEncoding, ScoreEncoding)):
            if any(config.name == other.name for other in [*plan.biases, *plan.scores]):
                raise UnsupportedError(f"{config.name!r} appears twice in one list; once is enough.")
            (plan.biases if issubclass(kind, BiasEncoding) else plan.scores).append(config)
        elif issubclass(kind, InputEncoding):
            if plan.input is not None:
                raise UnsupportedError(f"{plan.input.name!r} and {config.name!r} both act on the input; use one.")
            plan.input = config
        else:
            raise UnsupportedError(f"{config.name!r} acts at no known site (input, rotation, bias or score).")
    _check_sites(host, plan)
    return plan


def _check_direction(host: Host, config: EncodingConfig, layers: Sequence[int]) -> None:
    info = get_encoding(config.name).info
    causal = [host.causal(i) for i in layers]
    if isinstance(config, NopeConfig) and config.allow_bag_of_words:
        return
    if not all(causal) and not info.bidirectional:
        way = (
            "Pass allow_bag_of_words=True if a model that cannot tell the order of its input is what you want"
            if isinstance(config, NopeConfig)
            else "Use an encoding that holds in both directions, such as 'alibi', 't5' or 'learned'"
        )
        raise UnsupportedError(
            f"{config.name!r} holds for causal attention only, and {type(host.base).__name__} attends in both "
            f"directions. {way}."
        )
    if any(causal) and not info.causal:
        raise UnsupportedError(f"{config.name!r} holds for bidirectional attention only; this model is causal.")


def _check_sites(host: Host, plan: Plan) -> None:
    model = type(host.base).__name__
    if host.family.rotary is None:
        if plan.rotation is not None and not isinstance(plan.rotation, (NopeConfig, RopeConfig)):
            piecewise = issubclass(get_encoding(plan.rotation.name), PiecewiseEncoding)
            act = "moves the positions of" if piecewise else "scales"
            raise UnsupportedError(
                f"{plan.rotation.name!r} {act} a rotation, and {model} has none (it adds a position table to its "
                "embeddings). To extend it use 'learned' or 'alibi'."
            )
        if not plan.all_layers and not plan.keeps_native:
            raise UnsupportedError(
                f"layers= cannot be chosen here: {model} adds positions once, to its input, so removing them concerns "
                f"all layers. Keep them with ['native', {plan.configs[0].name!r}], or patch all layers."
            )
        if plan.input is not None and plan.keeps_native and plan.input.name == "learned":
            raise UnsupportedError(
                f"{model} already has a learned table, which 'learned' extends in place; drop 'native' from the list."
            )
        if plan.input is not None and isinstance(plan.rotation, NopeConfig):
            raise UnsupportedError(f"'nope' removes the positions that {plan.input.name!r} adds; use one of them.")
    elif plan.rotation is not None and plan.keeps_native:
        raise UnsupportedError(f"'native' keeps the rotation that {plan.rotation.name!r} replaces. Name one of them.")
    if plan.input is not None and not plan.all_layers:
        raise UnsupportedError(
            f"{plan.input.name!r} acts on the input of the model, before all layers; leave out layers=."
        )


def _trained_length(host: Host, configs: Sequence[EncodingConfig]) -> int:
    """``L``: what the user said, what the rope parameters remember, or the model's own maximum."""
    said = [v for c in configs if (v := getattr(c, "original_max_position_embeddings", None)) is not None]
    if said:
        return int(said[0])
    if host.family.rotary is None:
        return host.config.max_position_embeddings - host.reserved_rows
    remembered = [r.get("original_max_position_embeddings") for r in host.rope_sets.values() if r]
    known = [int(n) for n in remembered if n]
    return known[0] if known else int(host.config.max_position_embeddings)


def check_unscaled(host: Host, config: EncodingConfig, names: Sequence[str | None], new: Mapping[Any, Any]) -> None:
    """Refuse to scale a model that is scaled already, unless its trained length is said or nothing changes.

    Args:
        names: the rope parameter sets that change.
        new: what they would become.

    Raises:
        UnsupportedError: with the existing scaling.
    """
    for name in names:
        rope = host.rope_sets[name]
        kind = rope.get("rope_type", "default")
        same = all(rope.get(k) == v for k, v in new[name].items())
        if kind not in SCALED or same or getattr(config, "original_max_position_embeddings", None) is not None:
            continue
        raise UnsupportedError(
            f"The model's rotation is already scaled (rope_type={kind!r}, factor={rope.get('factor')}), so what "
            f"{config.name!r} should start from is ambiguous. It would replace that scaling: say the trained length to "
            "replace it knowingly, with original_max_position_embeddings=N (yarn, llama3, longrope), or set "
            "config.rope_parameters back to the unscaled ones before loading."
        )


def shape_for(host: Host, plan: Plan, layer: int) -> HostShape:
    """The host shape of a layer with the plan's trained length."""
    return host.shape(layer, max_positions=plan.trained_length)
