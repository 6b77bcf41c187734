"""Training: a recipe and samples in, a run folder out; killed and started again, it goes on.

A run folder holds ``recipe.json`` and ``split.json`` (see `folder`), ``checkpoints/`` (the last
two), ``history.csv``, ``tensorboard/``, ``bad.jsonl`` (batches skipped as not finite, and their
samples), and at the end ``model/`` (`Fusion.save_pretrained`) and ``run.json``. What a step does is
a function of (seed, number of the batch): resumed on the same machine, a run ends with the same
weights to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import pandas as pd
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from cubes.types import CubeError, Progress
from deepsentinel.model import Fusion, FusionConfig
from deepsentinel.recipe import Recipe, TrainRecipe
from deepsentinel.training import checkpoint
from deepsentinel.training import folder as run_folder
from deepsentinel.training.basis import fit_basis
from deepsentinel.training.objectives import Objective, check_names, objective
from deepsentinel.training.sources import CubeSource, Fetched, Source

if TYPE_CHECKING:
    from cubes.sampling.sampleset import Samples
    from deepsentinel.loading.normalise import Normaliser


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished training run."""

    out: str
    """The run folder."""
    model: str
    """Folder of `Fusion.save_pretrained`: the averaged weights."""
    steps: int
    batches: int
    loss: float
    """Mean over the last steps logged."""
    val_loss: float | None
    """Of the averaged weights on the validation split, or None without one."""
    seconds: float
    """In this process; less than the whole where the run was resumed."""
    skipped: int
    """Batches, or steps, left out because loss or gradient was not finite."""
    resumed: int | None
    """Step that this process went on from."""
    recipe_sha256: str
    weights_sha256: str
    """Of the saved weights: equal for two runs exactly if every bit is."""


def train(
    recipe: Recipe,
    samples: Samples | Mapping[str, Samples] | Mapping[str, Source],
    *,
    out: str | Path,
    norm: Normaliser | None = None,
    progress: Progress | None = None,
    force: bool = False,
) -> Run:
    """Return the run that a recipe makes of samples; goes on where it was interrupted.

    Parameters
    ----------
    recipe
        What to do, see `load_recipe`.
    samples
        Training samples, or splits by name: ``train`` is learned from, ``val`` (if there)
        watched. A `Source` in place of samples brings batches of its own.
    out
        The run folder.
    norm
        Rows and statistics that make inputs of stored integers; None takes the statistics of the
        training samples.
    progress
        Told (step, steps, what) after every logged step.
    force
        Remove a run of another recipe or other samples that is in the way.

    Raises
    ------
    CubeError
        No training samples, another run in `out`, or too many steps that were not finite.
    """
    wanted = objective(recipe.objective.name, **dict(recipe.objective.options))
    sources = _sources(recipe, samples, norm)
    # wrong options fail now, before anything is written
    check_names(wanted, recipe.objective.options, sources["train"].groups)
    folder = Path(out)
    with run_folder.locked(folder):
        finished = run_folder.claim(folder, recipe, sources, force=force)
        if finished is not None:
            return Run(**finished)
        parts = samples if isinstance(samples, Mapping) else {"train": samples}
        run_folder.write_split(folder, parts)
        return _train(recipe, sources, folder, progress)


def _train(
    recipe: Recipe, sources: dict[str, Source], folder: Path, progress: Progress | None
) -> Run:
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    config = FusionConfig.sized(
        recipe.model.size,
        sources["train"].groups,
        normaliser=sources["train"].normaliser,
        card={"recipe": json.loads(recipe.to_json()), "recipe_sha256": recipe.sha256,
              "samples_sha256": sources["train"].sha256, "torch": torch.__version__,
              "catalogs": list(getattr(sources["train"], "catalogs", ()))},
        **recipe.model.options(),
    )  # fmt: skip
    model = Fusion(config)
    fit_basis(model, sources["train"], recipe.seed)
    module = Training(model, recipe, sources, folder, progress)
    resumed = module.restore()
    _fit(module, folder, recipe.train)
    if module.failure is not None:
        raise module.failure
    module.save()
    return _finish(module, folder, time.monotonic() - started, resumed)


def _sources(recipe: Recipe, samples: Any, norm: Normaliser | None) -> dict[str, Source]:
    parts = dict(samples) if isinstance(samples, Mapping) else {"train": samples}
    if "train" not in parts:
        raise CubeError(f"samples have the splits {', '.join(parts) or 'none'}, and no 'train'")
    if isinstance(parts["train"], Source):
        return parts
    if norm is None:
        from cubes.sampling.stats import stats
        from deepsentinel.loading.normalise import Normaliser

        norm = Normaliser.of(stats(parts["train"]), parts["train"].layers)
    learned = CubeSource(parts["train"], recipe, norm, learn=True)
    made: dict[str, Source] = {"train": learned}
    if "val" in parts and len(parts["val"]):
        made["val"] = CubeSource(parts["val"], recipe, norm, learn=False, contract=learned.contract)
    return made


def _fit(module: Training, folder: Path, recipe: TrainRecipe) -> None:
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=recipe.accelerator,
            devices=1,
            precision=recipe.precision,
            max_epochs=-1,
            logger=TensorBoardLogger(folder, name="tensorboard", version=""),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,  # we log by ourselves; more than an epoch's batches is a warning
        )
        for source in module.sources.values():
            if isinstance(source, CubeSource):
                source.on(trainer.strategy.root_device)
        if module.step < recipe.steps:
            trainer.fit(module, datamodule=Data(module.sources["train"]))


def _finish(module: Training, folder: Path, seconds: float, resumed: int | None) -> Run:
    weights = module.averaged()
    model = Fusion(module.model.config)
    model.load_state_dict(weights)
    draft = folder / ".model.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    shutil.rmtree(folder / "model", ignore_errors=True)
    draft.rename(folder / "model")
    last = module.history[-1] if module.history else {}
    seen = [row["val_loss"] for row in module.history if "val_loss" in row]
    run = Run(
        out=str(folder),
        model=str(folder / "model"),
        steps=module.step,
        batches=module.batches,
        loss=float(last.get("loss", math.nan)),
        val_loss=seen[-1] if seen else None,
        seconds=round(seconds, 3),
        skipped=module.bad,
        resumed=resumed,
        recipe_sha256=module.recipe.sha256,
        weights_sha256=checkpoint.digest(weights),
    )
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(run), indent=1) + "\n")
    return run


class Data(lightning.LightningDataModule):
    """A source as Lightning wants it."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def train_dataloader(self) -> Source:
        """Return the source itself: it is an iterable with a position."""
        return self.source

    def transfer_batch_to_device(
        self,
        batch: Fetched,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Fetched:
        """Return the batch on the device."""
        return Fetched(self.source.to(batch.batch, device), batch.position)


class Training(lightning.LightningModule):
    """Steps, averages, checkpoints and figures of one run."""

    automatic_optimization = False

    def __init__(
        self,
        model: Fusion,
        recipe: Recipe,
        sources: Mapping[str, Source],
        folder: Path,
        progress: Progress | None = None,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.folder = model, recipe, folder
        self.sources, self.progress = dict(sources), progress
        self.objective: Objective = objective(
            recipe.objective.name, **dict(recipe.objective.options)
        )
        self.step = self.batches = self.bad = 0
        self.failure: CubeError | None = None
        self.history: list[dict[str, float]] = []
        self.ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.position: dict[str, int] = {}
        self._pending: dict[str, Tensor] = {}
        self._recent: list[dict[str, Tensor]] = []
        self._clock = time.monotonic()
        self._ids: list[str] = []
        self._finite = 0
        if recipe.train.compile:
            for module in model.modules():
                if type(module).__name__ in ("Block", "GroupEncoder", "Detail"):
                    module.compile(dynamic=False)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW; matrices are decayed, vectors are not."""
        t = self.recipe.train
        wide = [p for p in self.model.parameters() if p.ndim >= 2]
        thin = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": wide, "weight_decay": t.weight_decay},
            {"params": thin, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=t.lr, betas=t.betas, fused=True)

    def _optimizer(self) -> LightningOptimizer:
        found = self.optimizers()
        assert isinstance(found, LightningOptimizer)
        return found

    def on_train_start(self) -> None:
        """Put optimiser and generators where the checkpoint left them."""
        self.ema = {k: v.to(self.device) for k, v in self.ema.items()}
        if self._pending:
            _load_optimizer(self._optimizer().optimizer, self._pending)
            checkpoint.set_random_state(self._pending, self._random)
            self._pending = {}
        self._clock = time.monotonic()

    def training_step(self, fetched: Fetched, batch_idx: int) -> None:  # noqa: ARG002
        """Take one batch: loss, gradients and, every `accumulate` batches, a step."""
        t, source = self.recipe.train, self.sources["train"]
        optimizer = self._optimizer()
        generator = torch.Generator().manual_seed(mixed(self.recipe.seed, self.batches))
        inputs = source.inputs(fetched.batch, generator)
        losses = self.objective(self.model, inputs, generator=generator, batch=fetched.batch)
        self.batches += 1
        self.position = fetched.position
        ids = source.ids(fetched.batch)
        if bool(torch.isfinite(losses["loss"])):
            self.manual_backward(losses["loss"] / t.accumulate)
            self._recent.append({k: v.detach() for k, v in losses.items()})
            self._finite += 1
            self._ids += ids
        else:
            self._skip("loss", ids)
        if self.batches % t.accumulate:
            return
        finite, self._finite = self._finite, 0
        ids, self._ids = self._ids, []
        if finite == 0:
            return
        if finite < t.accumulate:  # the mean over the batches that count
            torch._foreach_mul_(
                [p.grad for p in self.model.parameters() if p.grad is not None],
                t.accumulate / finite,
            )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(t, self.step)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), t.clip)
        if bool(torch.isfinite(norm)):
            optimizer.step()
            optimizer.zero_grad()
            self.step += 1
            self._recent[-1]["grad_norm"] = norm.detach()
            self._average()
            self._after_step()
        else:
            optimizer.zero_grad()
            self._skip("gradient", ids)

    def _average(self) -> None:
        """Move the averaged weights; young averages follow fast: (1 + n) / (10 + n)."""
        decay = min(self.recipe.train.ema, (1 + self.step) / (10 + self.step))
        mine = self.model.state_dict()
        average = [self.ema[k] for k in mine]
        torch._foreach_lerp_(average, list(mine.values()), 1 - decay)

    def _after_step(self) -> None:
        t = self.recipe.train
        last = self.step >= t.steps
        if self.step % t.log_every == 0 or last:
            self._log(validate=self.step % t.validate_every == 0 or last)
        if self.step % t.save_every == 0 and not last:
            self.save()
        if last:
            self.trainer.should_stop = True

    def _skip(self, what: str, ids: list[str]) -> None:
        """Note a batch, or the step of several, that was not finite; give up after too many."""
        self.bad += 1
        note = {"step": self.step, "batch": self.batches - 1, "what": what, "samples": ids}
        with (self.folder / "bad.jsonl").open("a") as file:
            file.write(json.dumps(note) + "\n")
        warnings.warn(
            f"the {what} of batch {self.batches - 1} is not finite; the step is skipped. Samples: "
            f"{'; '.join(ids)}",
            stacklevel=2,
        )
        if self.bad > self.recipe.train.max_bad:
            self.failure = CubeError(
                f"{self.bad} steps were not finite, the last one at step {self.step} with samples "
                f"{'; '.join(ids)}; they are listed in {self.folder / 'bad.jsonl'}. Look at "
                "these samples, or lower train.lr; the last checkpoint is whole"
            )
            self.trainer.should_stop = True

    def _log(self, *, validate: bool) -> None:
        keys = sorted({k for r in self._recent for k in r})
        means = {k: float(torch.stack([r[k] for r in self._recent if k in r]).mean()) for k in keys}
        now = time.monotonic()
        seconds = (self.history[-1]["seconds"] if self.history else 0.0) + now - self._clock
        row = {
            "step": self.step, "batches": self.batches, "seconds": round(seconds, 3),
            "lr": learning_rate(self.recipe.train, self.step - 1), **means,
        }  # fmt: skip
        if validate and "val" in self.sources:
            row["val_loss"] = self._validate()
        self._clock, self._recent = now, []
        self.history.append(row)
        if self.logger is not None:
            self.logger.log_metrics({k: v for k, v in row.items() if k != "step"}, self.step)
        self._write_history()
        if self.progress is not None:
            what = f"loss {row['loss']:.3f}"
            self.progress(self.step, self.recipe.train.steps, what)

    def _write_history(self) -> None:
        draft = self.folder / ".history.tmp"
        first = ["step", "batches", "seconds", "lr", "loss"]
        rest = sorted({k for row in self.history for k in row} - set(first))
        pd.DataFrame(self.history, columns=[*first, *rest]).to_csv(draft, index=False)
        draft.replace(self.folder / "history.csv")

    @torch.no_grad()
    def _validate(self) -> float:
        """Return the loss of the averaged weights on the same batches, hidden alike, each time."""
        source, mine = self.sources["val"], {
            k: v.clone() for k, v in self.model.state_dict().items()
        }  # fmt: skip
        self.model.load_state_dict(self.averaged())
        self.model.eval()
        losses = []
        source.rewind()
        for i, fetched in enumerate(source):
            if i >= self.recipe.train.validate_batches:
                break
            generator = torch.Generator().manual_seed(mixed(self.recipe.seed, -1 - i))
            batch = source.to(fetched.batch, self.device)
            inputs = source.inputs(batch, generator)
            losses.append(
                self.objective(self.model, inputs, generator=generator, batch=batch)["loss"]
            )
        self.model.load_state_dict(mine)
        self.model.train()
        return float(torch.stack(losses).mean()) if losses else math.nan

    def averaged(self) -> dict[str, Tensor]:
        """Return the weights to evaluate: averaged, or the last ones where ``ema`` is 0."""
        now = self.ema if self.recipe.train.ema else self.model.state_dict()
        return {k: v.detach().clone() for k, v in now.items()}

    def save(self) -> Path:
        """Return the checkpoint written of everything that the next step depends on."""
        random_tensors, random_state = checkpoint.random_state()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.items()} | random_tensors
        if self._trainer is not None and self.trainer.optimizers:
            for i, entry in self.trainer.optimizers[0].state_dict()["state"].items():
                tensors |= {f"optim.{i}.{k}": v for k, v in entry.items()}
        state = {
            "batches": self.batches, "bad": self.bad, "position": self.position,
            "random": random_state, "history": self.history,
            "recipe_sha256": self.recipe.sha256,
        }  # fmt: skip
        return checkpoint.save(self.folder / "checkpoints", self.step, tensors, state)

    def restore(self) -> int | None:
        """Return the step of the checkpoint gone on from, or None where there is none."""
        found = checkpoint.load(self.folder / "checkpoints")
        if found is None:
            return None
        tensors, state = found
        self.model.load_state_dict(_part(tensors, "model."))
        self.ema = _part(tensors, "ema.")
        self.step, self.batches, self.bad = state["step"], state["batches"], state["bad"]
        self.history, self.position = state["history"], state["position"]
        self._pending, self._random = tensors, state["random"]
        self.sources["train"].load_state_dict(self.position)
        return self.step


def mixed(seed: int, number: int) -> int:
    """Return a seed for step `number`: neighbours must not give related streams (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (z ^ (z >> 31)) >> 1


def learning_rate(recipe: TrainRecipe, step: int) -> float:
    """Return the rate of a step (from 0): linear warm-up, then a cosine to ``lr * lr_end``."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = min(1.0, (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup))
    return recipe.lr * (recipe.lr_end + (1 - recipe.lr_end) * (1 + math.cos(math.pi * done)) / 2)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optim.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning from announcing devices and tips; its warnings still come through."""
    logs = [logging.getLogger(f"lightning.{n}") for n in ("pytorch", "fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6.6 asks torch 2.13 in the old way, once per fit; nothing to do about it.
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
