"""The papers' equations, written out as they are printed: for comparison, not for use.

Loops over samples, the attack of CAT's Algorithm 1, weights moved in place on copies of the model, one backward a
model, SGD by hand. Of advkit nothing is used but its addressed random numbers: CAT's noise must be the same draws.

    CAT    Cheng, Lei, Chen, Dhillon, Hsieh 2022       AWP    Wu, Xia, Wang 2020
    ISEAT  Li, Spratling 2023; equations without a name are ISEAT's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from advkit.rng import Draws, derive_key

Record = dict[str, Tensor]
"""What one visit of a batch did, by name."""


@dataclass(frozen=True)
class Attack:
    """The radius, the step size and the number of iterations of the inner maximisation."""

    eps: float
    alpha: float
    m: int


# ---------------------------------------------------------------------- one sample: logits z (K,), target (K,)


def log_softmax(z: Tensor) -> Tensor:
    top = z.detach().max()
    return z - (top + (z - top).exp().sum().log())


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    return -(target * log_softmax(z)).sum()


def squared_l2(adversarial: Tensor, clean: Tensor) -> Tensor:
    """Eq. 16: squared, and summed over the classes."""
    return ((adversarial - clean) ** 2).sum()


def kl(adversarial: Tensor, clean: Tensor) -> Tensor:
    """Eq. 17: KL(f(x), f(x + delta)), the clean prediction first."""
    p, q = log_softmax(clean), log_softmax(adversarial)
    return (p.exp() * (p - q)).sum()


def one_hot(y: Tensor, classes: int) -> list[Tensor]:
    return [torch.tensor([float(k == label) for k in range(classes)], dtype=torch.float64) for label in y.tolist()]


def smoothed(target: Tensor, eps: float, c: float, u: Tensor) -> Tensor:
    """CAT's Eq. 4: (1 - c eps_i) y_i + c eps_i Dirichlet(1)."""
    return (1 - c * eps) * target + c * eps * u


def prediction(model: nn.Module, x: Tensor) -> int:
    return int(model(x[None])[0].argmax())


def perturbed(model: nn.Module, x: Tensor, target: Tensor, eps: float, attack: Attack) -> Tensor:
    """The inner loop of CAT's Algorithm 1 on one image, with the clip to [0, 1] that it does not print."""
    delta = torch.zeros_like(x)
    for _ in range(attack.m):
        delta.requires_grad_()
        loss = cross_entropy(model((x + delta)[None])[0], target)
        (gradient,) = torch.autograd.grad(loss, delta)
        # A sign that rounding can flip would make the comparison a lottery.
        assert ((gradient == 0) | (gradient.abs() > 1e-11)).all()
        delta = delta.detach() + attack.alpha * gradient.sign()
        delta = torch.maximum(torch.minimum(delta, torch.full_like(x, eps)), torch.full_like(x, -eps))
        delta = boxed(x, delta)
    return x + delta


def boxed(x: Tensor, delta: Tensor) -> Tensor:
    """The shift that keeps x + delta an image."""
    return (x + delta).clamp(0, 1) - x


# ---------------------------------------------------------------------- theta, and SGD on it


class Branch:
    """One model and its logits z: a leaf, so that dL/dz is found first and pulled back to the weights after."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self._output = model(images)
        self.z = self._output.detach().requires_grad_()

    def pull_back(self) -> dict[str, Tensor]:
        """dL/dz dz/dtheta, by parameter; nothing where L does not depend on z."""
        if self.z.grad is None:
            return {}
        self._output.backward(self.z.grad)
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


class Learner:
    """theta with its running statistics, SGD's velocity, and CAT's eps_i, all 0 at first."""

    def __init__(self, model: nn.Module, samples: int, lr: float, momentum: float = 0.9, decay: float = 5e-4) -> None:
        self.theta = deepcopy(model)
        self.lr, self.momentum, self.decay = lr, momentum, decay
        self.velocity: dict[str, Tensor] = {}
        self.eps = [0.0] * samples

    def copy(self, training: bool = True) -> nn.Module:
        """The same weights and statistics; what happens to the copy is forgotten."""
        return deepcopy(self.theta).train(training)

    def moved(self, v: Mapping[str, Tensor]) -> nn.Module:
        """The second model, theta' = theta + v."""
        model = self.copy()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in v:
                    p.add_(v[name])
        return model

    def descend(self, loss: Tensor, live: Branch, *others: Branch) -> Record:
        """The gradient as Eq. 20 sums it, one backward a model; then SGD. The statistics that `live` moved are kept."""
        loss.backward()
        gradient: dict[str, Tensor] = {}
        for branch in (live, *others):
            for name, value in branch.pull_back().items():
                gradient[name] = gradient[name] + value if name in gradient else value.clone()
        with torch.no_grad():
            for name, p in self.theta.named_parameters():
                force = gradient[name] + self.decay * p
                self.velocity[name] = self.momentum * self.velocity[name] + force if name in self.velocity else force
                p.sub_(self.lr * self.velocity[name])
            for kept, moved in zip(self.theta.buffers(), live.model.buffers(), strict=True):
                kept.copy_(moved)
        return {
            "loss": loss.detach(),
            **{f"gradient {name}": value for name, value in gradient.items()},
            **{f"parameter {name}": p.detach().clone() for name, p in self.theta.named_parameters()},
            **{f"statistic {name}": b.double() for name, b in self.theta.named_buffers()},
        }


def mean(values: Sequence[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


# ---------------------------------------------------------------------- the weight perturbation


def ascent(me: Learner, x: Tensor, x_adv: Tensor, target: Sequence[Tensor]) -> dict[str, Tensor]:
    """The gradient in Eq. 14: of E_i L(x_i + delta_i; theta), on a copy whose statistics are thrown away."""
    proxy = me.copy()
    z = proxy(x_adv)
    mean([cross_entropy(z[i], target[i]) for i in range(len(x))]).backward()
    return {name: p.grad for name, p in proxy.named_parameters()}


def length(tensor: Tensor) -> Tensor:
    return (tensor.detach() ** 2).sum().sqrt()


def projected(gradient: Mapping[str, Tensor], theta: nn.Module, gamma: float) -> dict[str, Tensor]:
    """Eq. 14 with the norms of each layer, as Eq. 13: v_l = gamma g_l / ||g_l|| ||w_l||; biases and norms stay."""
    return {
        name: gamma * gradient[name] / length(gradient[name]) * length(p)
        for name, p in theta.named_parameters()
        if p.dim() > 1
    }


def ratio(v: Mapping[str, Tensor], theta: nn.Module) -> Tensor:
    """||v|| / ||theta||, each over all tensors."""
    total = sum(length(p) ** 2 for p in theta.parameters())
    return (sum(length(value) ** 2 for value in v.values()) / total).sqrt()


# ---------------------------------------------------------------------- the weights of instances


def vulnerability(adversarial: Tensor, clean: Tensor, target: Sequence[Tensor]) -> list[float]:
    """Eq. 10 per sample, from logits at theta + v and at theta."""
    return [
        float(cross_entropy(adversarial[i].detach(), target[i]) - cross_entropy(clean[i].detach(), target[i]))
        for i in range(len(target))
    ]


def by_radius(av: Sequence[float], radius: Sequence[float]) -> list[float]:
    """AV_i / radius_i, 0 where nothing was allowed. No paper's: what makes AV comparable between budgets of CAT."""
    return [value / r if r > 0 else 0.0 for value, r in zip(av, radius, strict=True)]


def ranks(keys: Sequence[float], index: Sequence[int]) -> list[int]:
    """r of Eq. 15, "indexed from 0 for the highest vulnerability"; between equals the smaller sample id."""
    m = range(len(keys))
    return [sum(keys[j] > keys[i] or (keys[j] == keys[i] and index[j] < index[i]) for j in m) for i in m]


def linear(rank: int, m: int) -> float:
    """Eq. 15."""
    return 1 - rank / m


def top(share: float) -> Callable[[int, int], float]:
    """The indicator of Eq. 9: the share of the batch with the highest AV, at least one sample."""
    return lambda rank, m: float(rank < max(1, int(share * m)))


def unweighted(rank: int, m: int) -> float:
    return 1.0


# ---------------------------------------------------------------------- the methods, one visit of a batch each


def attacked(me: Learner, x: Tensor, target: Sequence[Tensor], attack: Attack) -> Tensor:
    """delta_i at theta, in eval mode, every sample with the same eps."""
    model = me.copy(training=False)
    return torch.stack([perturbed(model, x[i], target[i], attack.eps, attack) for i in range(len(x))])


def pgd_at(me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack) -> Record:
    """min E_i max CE(f(x_i + delta_i; theta), y_i)."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    adversarial = Branch(me.copy(), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def awp(me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, gamma: float) -> Record:
    """min max_v E_i max CE(f(x_i + delta_i; theta + v), y_i), delta made at theta."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    v = projected(ascent(me, x, x_adv, target), me.theta, gamma)
    adversarial = Branch(me.moved(v), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | {"shift": ratio(v, me.theta)} | me.descend(loss, adversarial)


def smoothing(
    me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, c: float, index: Tensor, epoch: int, seed: int
) -> Record:
    """CAT's Eq. 4 without its budgets, "Adv+LS" of its Table 5: eps_i is eps in both draws."""
    hard = one_hot(y, classes)
    first, second = (noise(seed, phase, epoch, index, classes) for phase in ("attack", "train"))
    x_adv = attacked(me, x, [smoothed(hard[i], attack.eps, c, first[i]) for i in range(len(x))], attack)
    adversarial = Branch(me.copy(), x_adv)
    target = [smoothed(hard[i], attack.eps, c, second[i]) for i in range(len(x))]
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def cat(me: Learner, x: Tensor, y: Tensor, classes: int, **options: Any) -> Record:
    """CAT: Algorithm 1, and its last line for the whole batch."""
    made = algorithm_1(me, x, y, classes, **options)
    adversarial = Branch(me.copy(), made.x_adv)
    loss = mean([cross_entropy(adversarial.z[i], made.target[i]) for i in range(len(x))])
    return made.record() | me.descend(loss, adversarial)


def iseat(me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, index: Tensor, **options: Any) -> Record:
    """ISEAT: Algorithm 2."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    return {"x_adv": x_adv} | algorithm_2(me, x, x_adv, target, target, index, **options)


def cat_iseat(
    me: Learner,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    index: Tensor,
    cat: Mapping[str, Any],
    iseat: Mapping[str, Any],
    normalise: bool = True,
    judge: str = "hard",
    **shared: Any,
) -> Record:
    """Algorithm 1 with Algorithm 2 in place of its last line, on y~_i; AV's labels are `judge`, "hard" or "soft"."""
    made = algorithm_1(me, x, y, classes, index=index, **shared, **cat)
    judged = one_hot(y, classes) if judge == "hard" else made.target
    radius = made.radius if normalise else None
    return made.record() | algorithm_2(me, x, made.x_adv, made.target, judged, index, radius=radius, **iseat)


# ---------------------------------------------------------------------- CAT's Algorithm 1


def noise(seed: int, phase: str, epoch: int, index: Tensor, classes: int) -> Tensor:
    """Dirichlet(1, ..., 1), (B, K): the draws of the run under test."""
    key = derive_key(seed, "dirichlet-ls", "noise", phase, epoch)
    return Draws(key, index).dirichlet(classes, dtype=torch.float64)


@dataclass
class Customized:
    """What Algorithm 1 knows before its last line; `target` is the second y~_i, `radius` bounded the attack."""

    x_adv: Tensor
    target: list[Tensor]
    eps: list[float]
    radius: list[float]
    success: list[bool]

    def record(self) -> Record:
        sums = {"radius": sum(self.radius), "success": float(sum(self.success))}
        return {
            "x_adv": self.x_adv,
            "eps": torch.tensor(self.eps, dtype=torch.float64),
            **{name: torch.tensor(value, dtype=torch.float64) for name, value in sums.items()},
        }


def raised(eps: float, eta: float, eps_max: float) -> float:
    """Before the attack: not capped."""
    return eps + eta


def settled(eps: float, success: bool, eps_max: float) -> float:
    """After the attack."""
    return min(eps_max, 0.0 if success else eps)


def algorithm_1(
    me: Learner,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    attack: Attack,
    eta: float,
    eps_max: float,
    c: float,
    index: Tensor,
    epoch: int,
    seed: int,
    warm_up: Sequence[float] | None = None,
) -> Customized:
    """CAT's Algorithm 1 up to the update. `warm_up` scales each radius and is not CAT's."""
    model = me.copy(training=False)
    hard = one_hot(y, classes)
    first, second = (noise(seed, phase, epoch, index, classes) for phase in ("attack", "train"))
    made = Customized(torch.empty_like(x), [], [], [], [])
    for i, sample in enumerate(index.tolist()):
        eps = me.eps[sample]
        target = smoothed(hard[i], eps, c, first[i])
        eps = raised(eps, eta, eps_max)
        radius = eps * (1.0 if warm_up is None else warm_up[i])
        made.x_adv[i] = perturbed(model, x[i], target, radius, attack)
        success = prediction(model, made.x_adv[i]) != int(y[i])
        eps = settled(eps, success, eps_max)
        made.target.append(smoothed(hard[i], eps, c, second[i]))
        me.eps[sample] = eps
        made.eps.append(eps)
        made.radius.append(radius)
        made.success.append(success)
    return made


# ---------------------------------------------------------------------- ISEAT's Algorithm 2


def algorithm_2(
    me: Learner,
    x: Tensor,
    x_adv: Tensor,
    target: Sequence[Tensor],
    judged: Sequence[Tensor],
    index: Tensor,
    *,
    gamma: float,
    lam: float,
    adv_at: str = "theta+v",
    clean_at: str = "theta",
    distance: Callable[[Tensor, Tensor], Tensor] = squared_l2,
    weight: Callable[[int, int], float] = linear,
    radius: Sequence[float] | None = None,
) -> Record:
    """From delta_i on: v, w_i, o_i, L (Eq. 18), and the update from two models (Eq. 19 and 20).

    `judged` are the labels of AV; `adv_at` and `clean_at` the couplings of Table 6.
    """
    m = len(x)
    v = projected(ascent(me, x, x_adv, target), me.theta, gamma) if gamma else {}
    adversarial = Branch(me.moved(v), x_adv)
    stable_adv = adversarial if adv_at == "theta+v" else Branch(me.copy(), x_adv)
    stable_clean = Branch(me.moved(v) if clean_at == "theta+v" else me.copy(), x)

    keys = vulnerability(adversarial.z, me.copy()(x), judged)
    if radius is not None:
        keys = by_radius(keys, radius)
    w = [weight(rank, m) for rank in ranks(keys, index.tolist())]

    base = [cross_entropy(adversarial.z[i], target[i]) for i in range(m)]
    o = [distance(stable_adv.z[i], clean_side(stable_clean.z[i])) for i in range(m)]
    stability = [lam * w[i] * o[i] for i in range(m)]
    loss = mean([base[i] + stability[i] for i in range(m)])
    record = {"base_loss": m * mean(base).detach(), "lsiw": m * mean(stability).detach()}
    if v:
        record["shift"] = ratio(v, me.theta)
    others = [stable_clean] if stable_adv is adversarial else [stable_adv, stable_clean]
    return record | me.descend(loss, adversarial, *others)


def clean_side(z: Tensor) -> Tensor:
    """With its gradient: Eq. 20 has a second term."""
    return z
