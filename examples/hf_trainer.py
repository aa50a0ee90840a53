"""step.loss in the Trainer of Hugging Face: the loop, the optimizer and its schedule are its, attack and loss advkit's.

python examples/hf_trainer.py                     # needs `pip install transformers accelerate`; about 10 s on one core
python examples/hf_trainer.py --plugins trades --epochs 5
"""

from __future__ import annotations

import argparse
import math
import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import advkit

EPS = 0.15


class Adversarial(Trainer):
    """Inputs are `pixel_values` in [0, 1], `labels` and `index`, the numbers of the samples; the model gives logits."""

    def __init__(
        self, model: nn.Module, plugins: str, data: advkit.Dataset, args: TrainingArguments, train_dataset: Any
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset)
        # No optimizer: the update is the Trainer's. Plugins are refused here, with a sentence, or train as declared.
        self.attacked = advkit.Step(
            model,
            None,
            plugins,
            num_samples=len(train_dataset),
            num_classes=len(data.classes),
            image_shape=data.shape,
            eps=EPS,
            settings={"run.epochs": math.ceil(args.num_train_epochs)},
            seed=args.seed,
        )
        self.add_callback(Updated(self.attacked))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *unused: Any, **others: Any) -> Tensor:
        x, y, index = (inputs[name] for name in ("pixel_values", "labels", "index"))
        return self.attacked.loss(x, y, index, epoch=int(self.state.epoch or 0))


class Updated(TrainerCallback):
    """Tells plugins of your own that wait for updates (after_update)."""

    def __init__(self, attacked: advkit.Step) -> None:
        self.attacked = attacked

    def on_optimizer_step(self, *unused: Any, **others: Any) -> None:
        self.attacked.updated()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plugins", default="cat-eps,dirichlet-ls,lsiw")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    chosen = parser.parse_args()
    splits = advkit.load_data("digits", limit=chosen.limit)
    images, labels = splits.train.images.float() / 255, splits.train.labels
    torch.manual_seed(0)
    net = nn.Sequential(
        advkit.Normalize(*splits.train.statistics()),
        *(nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24 * 4 * 4, 10)),
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=chosen.epochs,
            per_device_train_batch_size=32,
            gradient_accumulation_steps=2,
            learning_rate=0.01,
            lr_scheduler_type="cosine",
            remove_unused_columns=False,  # `index` is no argument of the net's forward
            save_strategy="no",
            logging_strategy="epoch",
            disable_tqdm=True,
            report_to=[],
            use_cpu=True,
        )
        samples = [
            {"pixel_values": x, "labels": y, "index": n} for n, (x, y) in enumerate(zip(images, labels, strict=True))
        ]
        trained = Adversarial(net, chosen.plugins, splits.train, arguments, samples).train()
    print(f"loss {trained.training_loss:.3f}")
    judged = advkit.evaluate(net, splits.test, ("clean", "pgd-10"), eps=EPS, n=200, audit=False)
    print("  ".join(f"{attack.name} {attack.accuracy:.3f}" for attack in judged.attacks))


if __name__ == "__main__":
    main()
