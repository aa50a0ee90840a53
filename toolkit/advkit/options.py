"""Options as frozen, validated data: of plugins, of models, and of the run itself.

Numbers may be written as the papers write them: `8/255`, `0.159375 eps`, `eps/4`, `80/255/eps`, where `eps` is
the run's perturbation budget; coefficients as schedules, `0.1 after decay 1`, by the decays of the run's learning
rate. All are resolved once, when the options are validated.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import core_schema

from .errors import OptionError, blamed, cut, did_you_mean, shown
from .numerals import parse_number
from .plain import holds_none, listed, plain
from .registry import points

points("")  # pydantic asks all that is installed for plugins, and one that is broken would end every command


class OptionModel(BaseModel):
    """Base of every set of options: immutable, no unknown keys, no silent conversions, no NaN or Inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_arrays(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = {key for key, field in cls.model_fields.items() if get_origin(field.annotation) is list}
        return {key: listed(value) if key in lists else plain(value) for key, value in values.items()}


def option(default: Any, *, help: str, unit: str = "", symbol: str = "", under: str = "", **limits: Any) -> Any:
    """One option with its default, meaning, unit, symbol in its paper, and limits (`ge`, `gt`, `le`, `lt`).

    `under` says which other option it plays a part under: "scheme=top-k,linear", or "clip" for any but 0, "" and false.
    """
    known = (("unit", unit), ("symbol", symbol), ("under", under))
    about: dict[str, Any] = {key: text for key, text in known if text}
    return Field(default, description=help, json_schema_extra=about or None, **limits)


def under(options: type[OptionModel]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Options that play a part only under another one: its name, and its values where not all but none do."""
    about: dict[str, Any] = {key: field.json_schema_extra or {} for key, field in options.model_fields.items()}
    parts = {key: stated["under"].partition("=") for key, stated in about.items() if "under" in stated}
    return {key: (name, tuple(values.split(",")) if values else ()) for key, (name, _, values) in parts.items()}


def idle(options: OptionModel) -> dict[str, str]:
    """Options that play no part as the others are: {"share": "scheme=linear"}."""
    found = {}
    for key, (name, values) in under(type(options)).items():
        value = getattr(options, name)
        if str(value) not in values if values else not value:
            found[key] = f"{name}={shown(value) if value == '' else str(value).lower()}"
    return found


def _number(value: object, info: ValidationInfo) -> object:
    return parse_number(value, (info.context or {}).get("eps")) if isinstance(value, str) else value


_STAGED = re.compile(r"\s*(\S.*?)\s+after\s+decay\s+([1-9]\d{0,3})\s*", re.ASCII)


def _decay(number: int, info: ValidationInfo) -> int:
    """The first epoch after the `number`-th decay of the learning rate."""
    if (decays := (info.context or {}).get("decays")) is None:
        raise ValueError(
            "is relative to the decays of the learning rate, which are not known here; give epochs, such as "
            "[[0, 0.0], [10, 0.1]], or let a Step know them by its settings run.epochs and optimizer.milestones"
        )
    if number > len(decays):
        raise ValueError(
            f"is after a decay that this run has not: its learning rate has {len(decays)} by optimizer.schedule and "
            "optimizer.milestones; give epochs, such as [[0, 0.0], [10, 0.1]]"
        )
    return int(decays[number - 1])


def _points(value: object, info: ValidationInfo | None) -> tuple[tuple[int, float], ...]:
    """Pairs of epoch and value, from a number or a list of pairs; texts are numbers with an `info`. Or ValueError."""
    points = []
    for pair in value if isinstance(value := listed(value), list) else [[0, value]]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("is not a number or a list of [epoch, value] pairs")
        start, number = pair[0], pair[1] if info is None else _number(pair[1], info)
        start = int(start) if isinstance(start, float) and start.is_integer() else start  # an array has one type
        if isinstance(start, bool) or not isinstance(start, int):
            raise ValueError("has an epoch that is not a whole number")
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError("has a value that is not a number")
        if not 0 <= number <= LARGEST:
            raise ValueError("must have values from 0 to 3.4e38, the largest number of float32")
        points.append((start, float(number)))
    epochs = [start for start, _ in points]
    if not epochs or epochs[0] != 0 or epochs != sorted(set(epochs)):
        raise ValueError("must start at epoch 0 and have rising epochs")
    return tuple(points)


LARGEST = 3.4028234663852886e38
"""The largest number of float32, in which nets compute."""


def _of_float32(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError("must be at most 3.4e38, the largest number of float32")
    return value


Real = Annotated[float, BeforeValidator(_number), AfterValidator(_of_float32)]
"""A float of float32's range that may be written as a fraction or relative to eps."""


def _absolute(value: object) -> object:
    if not value or not isinstance(value, str):
        return value
    if not value.isascii() and value.encode(errors="replace") != value.encode(errors="surrogatepass"):
        raise ValueError("is no UTF-8, so no run file can hold it; rename the folder")
    return os.path.abspath(os.path.expanduser(value))


PLACE = BeforeValidator(_absolute)

Place = Annotated[str, PLACE]
"""A file or folder, "" for none, written with its whole path. A resumed run may name a copy elsewhere."""


def _everywhere(holds: Callable[[float, float], bool]) -> Callable[[Schedule, float], bool]:
    """A limit of an option, which holds for a schedule where it does for all its values."""
    return lambda schedule, limit: all(holds(value, limit) for _, value in schedule.points)


class Schedule:
    """A coefficient over epochs: piecewise constant, finite, not negative.

    Written as a number; as `[[epoch, value], ...]` with rising epochs that start at 0; or as `VALUE after decay N`,
    0 until the N-th decay of the learning rate. The latter becomes epochs by the settings `optimizer.milestones` and
    `run.epochs`, which a loop of one's own must therefore give.
    """

    __slots__ = ("points",)

    def __init__(self, points: float | Sequence[Sequence[float]]) -> None:
        try:
            self.points = _points(points, None)
        except ValueError as error:
            raise OptionError(f"The Schedule {shown(points)} {error}.") from None

    def at(self, epoch: int) -> float:
        """The value in force in `epoch` (0-based)."""
        return [value for start, value in self.points if start <= epoch][-1]

    def plain(self) -> float | list[list[float]]:
        """As it is written in a file."""
        return self.points[0][1] if len(self.points) == 1 else [[e, v] for e, v in self.points]

    __ge__, __gt__, __le__, __lt__ = map(_everywhere, (operator.ge, operator.gt, operator.le, operator.lt))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.points == other.points

    def __hash__(self) -> int:
        return hash(self.points)

    def __repr__(self) -> str:
        return f"Schedule({self.plain()!r})"

    @classmethod
    def parse(cls, value: object, info: ValidationInfo) -> Schedule:
        if isinstance(value, Schedule):
            return value
        if isinstance(value, str) and "decay" in value:
            if not (staged := _STAGED.fullmatch(value)):
                raise ValueError("is not of the form 'VALUE after decay N', such as '0.1 after decay 1'")
            value = [[0, 0.0], [_decay(int(staged[2]), info), staged[1]]]
        return cls(_points(value, info))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(cls.plain)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        pair = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "number"}]}
        staged = {"type": "string", "pattern": "^.+ after decay [1-9][0-9]*$"}
        return {"anyOf": [{"type": "number", "minimum": 0}, {"type": "array", "items": pair}, staged]}


O = TypeVar("O", bound=OptionModel)  # noqa: E741


def validate(
    model: type[O],
    values: Mapping[str, object],
    *,
    where: str,
    eps: float | None = None,
    decays: Sequence[int] | None = None,
) -> O:
    """Build options of `model`, or raise OptionError with one sentence. `where` prefixes the option's name, `eps` is
    what numbers, and `decays` (epochs) what schedules may be relative to."""
    try:
        with blamed(f"in the validators of {model.__module__}.{model.__qualname__}"):
            options = model.model_validate(dict(values), context={"eps": eps, "decays": decays})
    except ValidationError as error:
        raise _refusal(model, where, error, values, eps) from None
    refuse_none(options, where)
    return options


def refuse_none(options: OptionModel, where: str) -> None:
    for key, field in type(options).model_fields.items():
        if holds_none(value := getattr(options, key)) and (value, field.default) != (None, None):
            name = f"{where}.{key}"
            raise OptionError(f"{name} = {shown(value)} has None, which no run file holds; give another value.", name)


def _refusal(
    model: type[OptionModel], where: str, error: ValidationError, values: Mapping[str, object], eps: float | None
) -> OptionError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    name = f"{where}.{key or message.partition(' ')[0]}"
    if first["type"] == "extra_forbidden":
        near, known = did_you_mean(key, model.model_fields), ", ".join(model.model_fields) or "it has none"
        return OptionError(f"Unknown option {cut(name)}.{near} Known: {known}.", name, unknown=True)
    if not key:  # about options together: the message starts with the name of one
        return OptionError(f"{where}.{message}.", name)
    default = model.model_fields[key].default if key in model.model_fields and key not in values else None
    if isinstance(default, str) and "eps" in default:  # which nobody has typed
        return OptionError(
            f"{name}, by default {default}, has no allowed value with attack.eps = {eps}; set it, or another "
            "attack.eps.",
            name,
        )
    verb = "" if message.startswith(("is ", "has ", "must ", "divides ")) else "must be "
    return OptionError(f"{name} = {shown(first['input'])} {verb}{message}.", name)
