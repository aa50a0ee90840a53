"""The papers' equations, written out as they are printed: for comparison, not for use.

Loops over samples, the attack of CAT's Algorithm 1, weights moved in place on copies of the model, one backward a
model, SGD by hand. Of advkit nothing is used but its addressed random numbers: CAT's noise must be the same draws.

    CAT     Cheng, Lei, Chen, Dhillon, Hsieh 2022      AWP   Wu, Xia, Wang 2020
    TRADES  Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan   MART  Wang, Zou, Yi, Bailey, Ma, Gu 2020
            2019
    ISEAT   Li, Spratling 2023; equations without a name are ISEAT's
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


def margin(z: Tensor, y: int) -> Tensor:
    """max_{j != y} Z_j - Z_y, of CAT's mixed loss."""
    return torch.stack([z[j] for j in range(len(z)) if j != y]).max() - z[y]


def boosted(adversarial: Tensor, y: int) -> Tensor:
    """MART's BCE (Eq. 8): -log p_y(x') - log(1 - max_{k != y} p_k(x')); the constants are its code's."""
    log_p = log_softmax(adversarial)
    rival = torch.stack([log_p[k].exp() for k in range(len(log_p)) if k != y]).max()
    return -log_p[y] - torch.log(1.0001 - rival + 1e-12)


def misclassification(clean: Tensor, y: int) -> Tensor:
    """MART's weight of a sample: 1 - p_y(x)."""
    return 1.0000001 - log_softmax(clean)[y].exp()


def kl_of_mart(adversarial: Tensor, clean: Tensor) -> Tensor:
    """KL(p(x) || p(x')) as MART's code has it, which keeps log p(x') from -inf."""
    log_p = log_softmax(clean)
    return (log_p.exp() * (log_p - torch.log(log_softmax(adversarial).exp() + 1e-12))).sum()


def one_hot(y: Tensor, classes: int) -> list[Tensor]:
    return [torch.tensor([float(k == label) for k in range(classes)], dtype=torch.float64) for label in y.tolist()]


def smoothed(target: Tensor, eps: float, c: float, u: Tensor) -> Tensor:
    """CAT's Eq. 4: (1 - c eps_i) y_i + c eps_i Dirichlet(1)."""
    return (1 - c * eps) * target + c * eps * u


def prediction(model: nn.Module, x: Tensor) -> int:
    return int(model(x[None])[0].argmax())


def perturbed(
    model: nn.Module,
    x: Tensor,
    goal: Callable[[Tensor], Tensor],
    eps: float,
    attack: Attack,
    begin: Tensor | None = None,
) -> Tensor:
    """The inner loop of CAT's Algorithm 1 on one image, with the clip to [0, 1] that it does not print.

    `goal`, of the logits, is what it increases; `begin` is the first delta, 0 if left out, and is not clipped.
    """
    delta = torch.zeros_like(x) if begin is None else begin
    for _ in range(attack.m):
        delta.requires_grad_()
        loss = goal(model((x + delta)[None])[0])
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


def ascent_on_the_whole(
    me: Learner, x: Tensor, x_adv: Tensor, term: Callable[[int, Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """The same of E_i term(i, f(x_i'), f(x_i)), as TRADES-AWP."""
    proxy = me.copy()
    adversarial, clean = proxy(x_adv), proxy(x)
    mean([term(i, adversarial[i], clean[i]) for i in range(len(x))]).backward()
    return {name: p.grad for name, p in proxy.named_parameters()}


def projected(gradient: Mapping[str, Tensor], theta: nn.Module, gamma: float, min_dim: int = 2) -> dict[str, Tensor]:
    """Eq. 14 with the norms of each layer, as Eq. 13: v_l = gamma g_l / ||g_l|| ||w_l||; biases and norms stay."""
    return {
        name: gamma * gradient[name] / length(gradient[name]) * length(p)
        for name, p in theta.named_parameters()
        if p.dim() >= min_dim
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
    return torch.stack([perturbed(model, x[i], ce_with(target[i]), attack.eps, attack) for i in range(len(x))])


def ce_with(target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda z: cross_entropy(z, target)


def pgd_at(me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack) -> Record:
    """min E_i max CE(f(x_i + delta_i; theta), y_i)."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    adversarial = Branch(me.copy(), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def awp(me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, gamma: float, min_dim: int = 2) -> Record:
    """min max_v E_i max CE(f(x_i + delta_i; theta + v), y_i), delta made at theta."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    v = projected(ascent(me, x, x_adv, target), me.theta, gamma, min_dim)
    adversarial = Branch(me.moved(v), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | {"shift": ratio(v, me.theta)} | me.descend(loss, adversarial)


def awp_as_its_code(
    model: nn.Module, optimizer: torch.optim.Optimizer, x_adv: Tensor, y: Tensor, v: Mapping[str, Tensor]
) -> None:
    """The order of the official code: add v in place, forward, backward, optimizer.step, subtract v."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in v.items():
            named[name].add_(value)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model.train()(x_adv), y).backward()
    optimizer.step()
    with torch.no_grad():
        for name, value in v.items():
            named[name].sub_(value)


def two_forwards(
    me: Learner,
    x: Tensor,
    x_adv: Tensor,
    base: Callable[[int, Tensor, Tensor], Tensor],
    regularizer: Callable[[int, Tensor, Tensor], Tensor],
    name: str,
    gamma: float,
) -> Record:
    """Both terms of (i, f(x_i'; theta + v), f(x_i; theta + v)); the statistics see x', then x. v increases the sum."""
    v = {}
    if gamma:
        v = projected(
            ascent_on_the_whole(me, x, x_adv, lambda i, a, c: base(i, a, c) + regularizer(i, a, c)), me.theta, gamma
        )
    adversarial = Branch(me.moved(v), x_adv)
    clean = Branch(deepcopy(adversarial.model), x)
    base_loss = [base(i, adversarial.z[i], clean.z[i]) for i in range(len(x))]
    regular = [regularizer(i, adversarial.z[i], clean.z[i]) for i in range(len(x))]
    loss = mean([one + other for one, other in zip(base_loss, regular, strict=True)])
    record = {"x_adv": x_adv, "base_loss": sum(base_loss).detach(), name: sum(regular).detach()}
    if v:
        record["shift"] = ratio(v, me.theta)
    return record | me.descend(loss, clean, adversarial)


def start_noise(seed: int, epoch: int, index: Tensor, shape: torch.Size) -> Tensor:
    """N(0, 1) of the start of TRADES and MART: the draws of the run under test."""
    return Draws(derive_key(seed, "core", "start", "attack", epoch), index).normal(*shape, dtype=torch.float64)


def trades(
    me: Learner,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    attack: Attack,
    beta: float,
    index: Tensor,
    epoch: int,
    seed: int,
    gamma: float = 0.0,
) -> Record:
    """TRADES' Algorithm 1 and Eq. 5: CE(f(x), y) + beta KL(p(x) || p(x')), x' from x + 0.001 N(0, 1) by the same KL."""
    model = me.copy(training=False)
    noise_ = start_noise(seed, epoch, index, x[0].shape)
    target = one_hot(y, classes)

    def goal(i: int) -> Callable[[Tensor], Tensor]:
        z = model(x[i][None])[0].detach()
        return lambda z_adv: kl(z_adv, z)

    x_adv = torch.stack([perturbed(model, x[i], goal(i), attack.eps, attack, 0.001 * noise_[i]) for i in range(len(x))])
    return two_forwards(
        me,
        x,
        x_adv,
        lambda i, _, clean: cross_entropy(clean, target[i]),
        lambda i, adversarial, clean: beta * kl(adversarial, clean_side(clean)),
        "trades",
        gamma,
    )


def mart(
    me: Learner,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    attack: Attack,
    lam: float,
    index: Tensor,
    epoch: int,
    seed: int,
    gamma: float = 0.0,
    detach: Sequence[str] = (),
) -> Record:
    """MART's Eq. 11: BCE(p(x'), y) + lam KL(p(x) || p(x')) (1 - p_y(x)); CE makes x' from x + 0.001 N(0, 1).

    `detach` may name "weight" and "target".
    """
    model = me.copy(training=False)
    noise_, target = start_noise(seed, epoch, index, x[0].shape), one_hot(y, classes)
    x_adv = torch.stack(
        [perturbed(model, x[i], ce_with(target[i]), attack.eps, attack, 0.001 * noise_[i]) for i in range(len(x))]
    )

    def regularizer(i: int, adversarial: Tensor, clean: Tensor) -> Tensor:
        weighing, aimed = (clean.detach() if part in detach else clean for part in ("weight", "target"))
        return lam * kl_of_mart(adversarial, aimed) * misclassification(weighing, int(y[i]))

    return two_forwards(
        me, x, x_adv, lambda i, adversarial, _: boosted(adversarial, int(y[i])), regularizer, "mart", gamma
    )


def smoothing(
    me: Learner,
    x: Tensor,
    y: Tensor,
    classes: int,
    *,
    attack: Attack,
    c: float,
    index: Tensor,
    epoch: int,
    seed: int,
    redraw: bool = True,
) -> Record:
    """CAT's Eq. 4 without its budgets, "Adv+LS" of its Table 5: eps_i is eps in both draws."""
    hard = one_hot(y, classes)
    first, second = (noise(seed, phase, epoch, index, classes) for phase in ("attack", "train"))
    second = second if redraw else first
    x_adv = attacked(me, x, [smoothed(hard[i], attack.eps, c, first[i]) for i in range(len(x))], attack)
    adversarial = Branch(me.copy(), x_adv)
    target = [smoothed(hard[i], attack.eps, c, second[i]) for i in range(len(x))]
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def cat(me: Learner, x: Tensor, y: Tensor, classes: int, *, mixed: Mixed | None = None, **options: Any) -> Record:
    """CAT: Algorithm 1, and its last line for the whole batch; with its mixed loss where `mixed` is given."""
    made = algorithm_1(me, x, y, classes, mixed=mixed, **options)
    adversarial = Branch(me.copy(), made.x_adv)
    base = [cross_entropy(adversarial.z[i], made.target[i]) for i in range(len(x))]
    record = made.record()
    if mixed is None:
        return record | me.descend(mean(base), adversarial)
    hinges = [
        mixed.share(made.eps[i], len(x)) * outer_hinge(margin(adversarial.z[i], int(y[i])), mixed.kappa)
        for i in range(len(x))
    ]
    record |= {"base_loss": sum(base).detach(), "cat-margin": sum(hinges).detach()}
    return record | me.descend(mean([one + more for one, more in zip(base, hinges, strict=True)]), adversarial)


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


@dataclass(frozen=True)
class Mixed:
    """CAT's mixed loss: kappa, whether the hinge of the attack is its code's, and the hinge's weight."""

    kappa: float
    mirrored: bool = False
    weight: str = "one"

    def share(self, eps: float, batch: int) -> float:
        return {"one": 1.0, "eps": eps, "eps-sum": batch * eps}[self.weight]

    def inner(self, gap: Tensor) -> Tensor:
        if not self.mirrored:
            return outer_hinge(gap, self.kappa)
        return gap if gap < self.kappa else torch.full_like(gap, self.kappa) + 0 * gap


def outer_hinge(gap: Tensor, kappa: float) -> Tensor:
    """max(max_{j != y} Z_j - Z_y, -kappa), as printed."""
    return gap if gap > -kappa else torch.full_like(gap, -kappa) + 0 * gap


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


def as_printed(before: float, eps: float, reach: float, success: bool, eps_max: float) -> float:
    return settled(eps, success, eps_max)


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
    rule: Callable[[float, float, float, bool, float], float] | None = None,
    cap_before: bool = False,
    attack_label: str = "old",
    clean_on: bool | None = None,
    redraw: bool = True,
    mixed: Mixed | None = None,
) -> Customized:
    """CAT's Algorithm 1 up to the update. `warm_up` scales each radius and is not CAT's.

    What its official codes do otherwise: `rule` of (eps_i before and in the attack, the size of the perturbation
    found, success, eps_max); `cap_before` the attack; `attack_label` from the "new" eps_i; training on the clean
    image where success is `clean_on`; no `redraw` for the update; and the hinge of the `mixed` loss.
    """
    model = me.copy(training=False)
    hard = one_hot(y, classes)
    first, second = (noise(seed, phase, epoch, index, classes) for phase in ("attack", "train"))
    made = Customized(torch.empty_like(x), [], [], [], [])
    for i, sample in enumerate(index.tolist()):
        before = me.eps[sample]
        eps = raised(before, eta, eps_max)
        if cap_before:
            eps = min(eps_max, eps)
        target = smoothed(hard[i], before if attack_label == "old" else eps, c, first[i])
        radius = eps * (1.0 if warm_up is None else warm_up[i])
        goal = inner_goal(target, int(y[i]), radius, len(x), mixed)
        made.x_adv[i] = perturbed(model, x[i], goal, radius, attack)
        success = prediction(model, made.x_adv[i]) != int(y[i])
        reach = float((made.x_adv[i] - x[i]).abs().max())
        eps = (rule or as_printed)(before, eps, reach, success, eps_max)
        if clean_on is success:
            made.x_adv[i] = x[i]
        made.target.append(smoothed(hard[i], eps, c, (second if redraw else first)[i]))
        me.eps[sample] = eps
        made.eps.append(eps)
        made.radius.append(radius)
        made.success.append(success)
    return made


def inner_goal(target: Tensor, y: int, radius: float, batch: int, mixed: Mixed | None) -> Callable[[Tensor], Tensor]:
    if mixed is None:
        return ce_with(target)
    return lambda z: cross_entropy(z, target) + mixed.share(radius, batch) * mixed.inner(margin(z, y))


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


# ---------------------------------------------------------------------- what codes of the baselines have as options


def random_start(seed: int, epoch: int, index: Tensor, x: Tensor, eps: float, restart: int = 0) -> Tensor:
    """A first delta, uniform in +-eps and clipped to the box, an attempt: the draws of the run under test."""
    purpose = f"start {restart}" if restart else "start"
    draws = Draws(derive_key(seed, "core", purpose, "attack", epoch), index)
    return boxed(x, eps * draws.uniform(*x[0].shape, low=-1, high=1, dtype=torch.float64))


def restarted(
    me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, restarts: int, index: Tensor, seed: int
) -> Record:
    """PGD-AT in epoch 0 on the strongest of several attacks, as the code of Rice, Wong and Kolter 2020.

    Its `max_delta[all_loss >= max_loss]`, one sample at a time.
    """
    model, target = me.copy(training=False), one_hot(y, classes)
    begin = [random_start(seed, 0, index, x, attack.eps, restart) for restart in range(restarts)]
    x_adv = x.clone()
    for i in range(len(x)):
        highest = 0.0
        for restart in range(restarts):
            found = perturbed(model, x[i], ce_with(target[i]), attack.eps, attack, begin[restart][i])
            loss = float(cross_entropy(model(found[None])[0], target[i]).detach())
            if loss >= highest:
                highest, x_adv[i] = loss, found
    adversarial = Branch(me.copy(), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | me.descend(loss, adversarial)


def perturbed_l2(model: nn.Module, x: Tensor, target: Tensor, attack: Attack, box_first: bool) -> Tensor:
    """PGD in L2 on one image from x: by the code of TRADES, which clips to the box first, or by that of Rice et al."""
    delta = torch.zeros_like(x)
    for _ in range(attack.m):
        delta.requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model((x + delta)[None])[0], target), delta)
        delta = delta.detach() + attack.alpha * gradient / length(gradient)
        delta = boxed(x, delta) if box_first else delta
        delta = delta * min(1.0, attack.eps / float(length(delta)))
        delta = delta if box_first else boxed(x, delta)
    return x + delta


def awp_in_steps(
    me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, gamma: float, steps: int
) -> Record:
    """AWP whose v is made of several ascents of gamma / steps each, each at theta + v as far as it is made."""
    target = one_hot(y, classes)
    x_adv = attacked(me, x, target, attack)
    v: dict[str, Tensor] = {}
    for _ in range(steps):
        proxy = me.moved(v)
        z = proxy(x_adv)
        mean([cross_entropy(z[i], target[i]) for i in range(len(x))]).backward()
        gradient = {name: p.grad for name, p in proxy.named_parameters()}
        move = projected(gradient, me.theta, gamma / steps)
        v = {name: v[name] + move[name] if v else move[name] for name in move}
    adversarial = Branch(me.moved(v), x_adv)
    loss = mean([cross_entropy(adversarial.z[i], target[i]) for i in range(len(x))])
    return {"x_adv": x_adv} | {"shift": ratio(v, me.theta)} | me.descend(loss, adversarial)


def iseat_from_a_random_start(
    me: Learner, x: Tensor, y: Tensor, classes: int, *, attack: Attack, index: Tensor, seed: int, **options: Any
) -> Record:
    """Algorithm 2 in epoch 0 with the attack's random start for x, as ISEAT's code has it."""
    target, model = one_hot(y, classes), me.copy(training=False)
    begin = random_start(seed, 0, index, x, attack.eps)
    x_adv = torch.stack(
        [perturbed(model, x[i], ce_with(target[i]), attack.eps, attack, begin[i].clone()) for i in range(len(x))]
    )
    return {"x_adv": x_adv} | algorithm_2(me, x + begin, x_adv, target, target, index, **options)
