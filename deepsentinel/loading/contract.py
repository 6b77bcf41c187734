"""The contract between a model and layers: what it takes, what there is, what becomes of it.

A model was trained on layers whose numbers mean something: their order of channels, units,
calibration. Samples and cubes hold layers in a form of their own. What differs in form alone
(scale, offset, nodata, dtype, more channels or another order of them) is reconciled by names and
physical values. What differs in meaning (calibration, units, channels that are not there) is
refused. A layer that is not there at all is fed as absent, which a model is made for.

    Contract.of(model).agree(samples.layers, calibrations(samples)).inputs(batch)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cubes.types import CubeError, Layer
from deepsentinel.loading.batch import Batch
from deepsentinel.loading.normalise import Normaliser, inputs
from deepsentinel.model import STATIC, ModelError, check_groups, usable

if TYPE_CHECKING:
    from cubes.sampling.sampleset import Samples

__all__ = [
    "STATIC",
    "Agreement",
    "Contract",
    "calibrations",
    "channels_usable",
    "chosen",
    "group_rows",
    "normaliser",
    "usable",
]

_DATED = ("time", "pair")


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What a model takes: its layers with their statistics, and what their numbers mean."""

    norm: Normaliser
    """Rows and statistics of the model's layers, and the masks that go with them."""
    groups: Mapping[str, Mapping[str, Any]]
    """As `FusionConfig.groups`."""

    @staticmethod
    def of(model: Any) -> Contract:
        """Return the contract that a trained model carries.

        Raises
        ------
        CubeError
            The model carries no statistics, or those of other layers.
        """
        groups = model.config.groups
        names = [row["name"] for g in groups for row in model.config.layers(g)]
        norm = chosen(normaliser(model), names)
        mine = {g: [r["channels"] for r in c["layers"]] for g, c in group_rows(norm).items()}
        for group, body in groups.items():
            want = [list(row["channels"]) for row in body["layers"]]
            if mine.get(group) != want:
                raise CubeError(
                    f"this model's group {group!r} has the channels {want} and its statistics are "
                    f"of {mine.get(group)}: give it the normaliser that it was trained with"
                )
        return Contract(norm=norm, groups=groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers that become inputs, in the order of their channels."""
        return tuple(row["name"] for body in self.groups.values() for row in body["layers"])

    def agree(self, held: Mapping[str, Layer], calibration: Mapping[str, str]) -> Agreement:
        """Return how layers that are held become what the model takes.

        Parameters
        ----------
        held
            Layer name -> row by which samples or a cube hold it; others than the model's are left
            alone.
        calibration
            Layer name -> radiometric calibration, where one is stated.

        Raises
        ------
        CubeError
            Another calibration, units or kind, a layer that lacks channels, or no dated layer.
        """
        wanted = [self.norm.layers[name] for name in self.names]
        dated = [row.name for row in wanted if row.stack_dim in _DATED]
        if not any(name in held for name in dated):
            raise CubeError(
                "there are none of the dated layers that this model takes, "
                f"{', '.join(dated)}; there are {', '.join(held) or 'none at all'}"
            )
        there = {name: held[name] for name in self.norm.layers if name in held}
        for name, row in there.items():
            _same_form(self.norm.layers[name], row)
        try:
            check_groups(self.groups, self._said(there, calibration))
        except ModelError as error:
            raise CubeError(str(error)) from None
        return Agreement(contract=self, held=there)

    def _said(
        self, there: Mapping[str, Layer], calibration: Mapping[str, str]
    ) -> dict[str, dict[str, Any]]:
        """Return what held layers mean, in the groups and with the channels of the model."""
        return {
            group: {
                "layers": [
                    {
                        "name": row["name"],
                        "channels": row["channels"],
                        "kind": there[row["name"]].kind,
                        "units": there[row["name"]].units,
                        "calibration": calibration.get(row["name"]) or None,
                    }
                    for row in body["layers"]
                    if row["name"] in there
                ]
            }
            for group, body in self.groups.items()
        }


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How layers in the form in which they are held become a model's inputs."""

    contract: Contract
    held: Mapping[str, Layer]
    """Layer name -> row by which it is held: the model's layers that are there, and masks."""

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the layers that the model knows and that are not there."""
        return tuple(name for name in self.contract.names if name not in self.held)

    @property
    def rows(self) -> dict[str, Layer]:
        """Layer name -> row as held, with the model's channels in the model's order."""
        known = self.contract.norm.layers
        return {
            name: row if row.channels == known[name].channels else row.pick(known[name].channels)
            for name, row in self.held.items()
        }

    def arranged(self, batch: Batch) -> Batch:
        """Return a batch as it is held with the model's channels in the model's order."""
        changed = {}
        for name, row in self.rows.items():
            have = self.held[name].channels
            if row.channels != have and name in batch.stored:
                order = [have.index(c) for c in row.channels]
                changed[name] = batch.stored[name][:, :, order]
        return replace(batch, stored={**batch.stored, **changed}) if changed else batch

    def inputs(self, batch: Batch) -> dict[str, dict[str, Tensor]]:
        """Return what the model takes of a batch as it is held, on the batch's device.

        See `deepsentinel.loading.normalise.inputs`.
        """
        return inputs(self.arranged(batch), self.contract.norm, held=self.held)


def _same_form(want: Layer, have: Layer) -> None:
    """Refuse a layer that no reordering turns into the model's."""
    if (want.stack_dim, want.kind == "mask") != (have.stack_dim, have.kind == "mask"):
        raise CubeError(
            f"{have.name} has dimensions {', '.join(have.dims)} ({have.kind}), and this model was "
            f"trained on {', '.join(want.dims)} ({want.kind}): name your layer otherwise, or train "
            "on it"
        )
    lost = [c for c in want.channels if c not in have.channels]
    if lost:
        raise CubeError(
            f"{have.name} has channels {', '.join(have.channels) or 'without names'}, and this "
            f"model takes {', '.join(want.channels)}: {', '.join(lost)} is missing. Build the cube "
            "with them, leave the layer out, or train a model on the channels that you have"
        )
    if have.channels and not want.channels:
        raise CubeError(
            f"{have.name} has channels {', '.join(have.channels)}, and this model takes it without "
            "any: name your layer otherwise, or train on it"
        )


def normaliser(model: Any) -> Normaliser:
    """Return the statistics that a model's inputs are made with.

    Raises
    ------
    CubeError
        The model carries none.
    """
    body = dict(model.config.normaliser)
    if not body:
        raise CubeError(
            "this model carries no normalisation statistics: train it with deepsentinel.train, or "
            "set FusionConfig(normaliser=json.loads(Normaliser.of(...).to_json()))"
        )
    try:
        return Normaliser.from_json(json.dumps(body))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise CubeError(
            f"this model's normalisation statistics cannot be read ({type(error).__name__}: "
            f"{error}): copy its config.json again from where it was saved"
        ) from None


def chosen(norm: Normaliser, names: Iterable[str] | None) -> Normaliser:
    """Return a normaliser of the layers named and of the masks ``clear`` that go with them.

    Raises
    ------
    CubeError
        It has no layer of that name.
    """
    used = {layer.name for rows in norm.groups(names).values() for layer in rows}
    groups = {norm.layers[n].group for n in used}
    keep = {
        n: v
        for n, v in norm.layers.items()
        if n in used or (v.variable == "clear" and v.group in groups and v.stack_dim == "time")
    }
    return replace(
        norm,
        layers=keep,
        mean={k: v for k, v in norm.mean.items() if k in used},
        std={k: v for k, v in norm.std.items() if k in used},
    )


def group_rows(
    norm: Normaliser, calibration: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the layers of a model's inputs as `FusionConfig.groups` wants them."""
    made: dict[str, dict[str, Any]] = {}
    for group, layers in norm.groups().items():
        rows = []
        for layer in layers:
            row: dict[str, Any] = {
                "name": layer.name,
                "channels": list(norm.channels(layer)),
                "kind": layer.kind,
                "units": layer.units,
            }
            if layer.stack_dim == "track":
                row["aux"] = True  # geometry is known for dates on which nothing was seen
            if layer.name in norm.mean:
                row["mean"], row["std"] = list(norm.mean[layer.name]), list(norm.std[layer.name])
            if calibration and layer.name in calibration:
                row["calibration"] = calibration[layer.name]
            rows.append(row)
        made[group] = {"layers": rows}
    return made


def calibrations(samples: Samples) -> dict[str, str]:
    """Return layer name -> radiometric calibration, as the stores' attributes say.

    Raises
    ------
    CubeError
        Two stores differ: sigma nought and gamma nought are not the same quantity.
    """
    found: dict[str, tuple[str, str]] = {}
    for store in samples.stores:
        for name in samples.layers:
            note = Path(store.path) / name / "zarr.json"
            if not note.is_file():
                continue
            value = json.loads(note.read_text()).get("attributes", {}).get("calibration")
            if value is None:
                continue
            first, where = found.setdefault(name, (str(value), str(store.path)))
            if first != value:
                raise CubeError(
                    f"{name} is {first} in {where} and {value} in {store.path}: a model takes one "
                    "calibration; convert one cube, or train on cubes of one kind"
                )
    return {name: value for name, (value, _) in found.items()}


def channels_usable(model: Any, group: str, values: Mapping[str, Tensor]) -> npt.NDArray[np.bool_]:
    """Return which numbers of a group's ``x`` may be used, bool, the shape of ``x``.

    Each layer's mask counts for its channels; a mask of clear pixels counts for all.
    """
    counts = [len(row["channels"]) for row in model.config.layers(group)]
    layer_of = np.repeat(np.arange(len(counts)), counts)
    mask: npt.NDArray[np.bool_] = usable(values).cpu().numpy()
    return np.take(mask, layer_of, axis=-3)
