"""step.loss in PyTorch Lightning: the loop, the optimizer and its schedule are Lightning's, attack and loss advkit's.

python examples/lightning_loop.py                             # needs `pip install lightning`; about 10 s on one core
python examples/lightning_loop.py --plugins trades --epochs 5
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import advkit

EPS = 0.15


class Adversarial(lightning.LightningModule):
    """A net from images in [0, 1] to logits; batches are images, labels and the numbers of the samples."""

    def __init__(self, net: nn.Module, plugins: str, data: advkit.Dataset, epochs: int) -> None:
        super().__init__()
        self.net = net
        # No optimizer: the update is Lightning's. Plugins are refused here, with a sentence, or train as declared.
        self.attacked = advkit.Step(
            net,
            None,
            plugins,
            num_samples=len(data.labels),
            num_classes=len(data.classes),
            image_shape=data.shape,
            eps=EPS,
            settings={"run.epochs": epochs},
            seed=0,
        )

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        x, y, index = batch
        loss = self.attacked.loss(x, y, index, epoch=self.current_epoch)
        self.log("loss", loss, on_epoch=True, on_step=False)
        return loss

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.attacked.updated()  # for plugins of your own that wait for updates (after_update)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["advkit"] = self.attacked.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.attacked.load_state_dict(checkpoint["advkit"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plugins", default="cat-eps,dirichlet-ls,lsiw")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=None, help="at most so many images")
    chosen = parser.parse_args()
    splits = advkit.load_data("digits", limit=chosen.limit)
    images, labels = splits.train.images.float() / 255, splits.train.labels
    lightning.seed_everything(0)
    net = nn.Sequential(
        advkit.Normalize(*splits.train.statistics()),
        *(nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(24 * 4 * 4, 10)),
    )
    samples = TensorDataset(images, labels, torch.arange(len(labels)))
    trainer = lightning.Trainer(
        max_epochs=chosen.epochs,
        accelerator="cpu",
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Adversarial(net, chosen.plugins, splits.train, chosen.epochs)
    trainer.fit(module, DataLoader(samples, batch_size=64, shuffle=True))
    print(f"loss {float(trainer.callback_metrics['loss']):.3f}")
    judged = advkit.evaluate(net, splits.test, ("clean", "pgd-10"), eps=EPS, n=200, audit=False)
    print("  ".join(f"{attack.name} {attack.accuracy:.3f}" for attack in judged.attacks))


if __name__ == "__main__":
    main()
