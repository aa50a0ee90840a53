"""advkit.Step in a loop of one's own: model, optimizer and schedule are yours, attack and losses advkit's.

python examples/own_loop.py                                   # about 10 s on one core
python examples/own_loop.py --plugins awp --epochs 5
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import advkit

EPS, BATCH = 0.15, 64  # eps in the unit of the images, which lie in [0, 1]

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("--plugins", default="cat-eps,dirichlet-ls,lsiw")
parser.add_argument("--epochs", type=int, default=12)
chosen = parser.parse_args()

# The data: uint8 images (N, C, H, W) and labels (N,). Any tensors of your own do as well.
splits = advkit.load_data("digits")
images, labels = splits.train.images.float() / 255, splits.train.labels

# Any module from images in [0, 1] to logits; normalisation belongs inside, so that eps means pixels.
torch.manual_seed(0)
model = nn.Sequential(
    advkit.Normalize(*splits.train.statistics()),
    *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
    *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
    *(nn.Flatten(), nn.Linear(48 * 4 * 4, 10)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
total = chosen.epochs * -(-len(labels) // BATCH)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)

# Plugins are refused here, with a sentence, or train as declared. None at all is PGD adversarial training.
step = advkit.Step(
    model,
    optimizer,
    [name for name in chosen.plugins.split(",") if name],
    num_samples=len(labels),  # per-sample state, such as CAT's budgets, has so many rows
    num_classes=len(splits.train.classes),  # and with the shape of an image, that of other state, such as LAS-AT's net
    image_shape=splits.train.shape,
    eps=EPS,
    settings={"run.epochs": chosen.epochs},
    seed=0,
)
for caution in step.composition.cautions:
    print(f"caution: {caution}")

for epoch in range(chosen.epochs):
    loss = torch.zeros(())
    for index in torch.split(torch.randperm(len(labels)), BATCH):
        # `index` says which samples these are: it addresses their state and their random numbers.
        report = step(images[index], labels[index], index, epoch=epoch)
        schedule.step()
        loss += report.loss * report.count
    print(f"epoch {epoch + 1}/{chosen.epochs}  loss {loss / len(labels):.3f}")

# Clean accuracy, PGD on cross-entropy, PGD on the margin. If the last two differ much, gradients are masked.
result = advkit.evaluate(model, splits.test, ["clean", "pgd-20", "cw-20"], eps=EPS)
for attack in result["attacks"]:
    low, high = attack["interval"]
    print(f"{attack['name']:7} {attack['accuracy']:.3f}  (95 % interval {low:.3f} to {high:.3f})")
if result["suspect"]:
    print("suspect: PGD and margin accuracies are surely more than 0.08 apart")
