"""What the page asks hf_gmar: each function answers one request, from the visitor's inputs alone.

Nothing is kept between requests: a check explains the image again, which gives the same map.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_gmar._core.execution import predict
from hf_gmar._core.model_adapter import ModelAdapter
from hf_gmar._core.request import ForwardRequest
from hf_gmar._utils.text import brief
from hf_gmar.app.images import open_visitors_image
from hf_gmar.app.limits import Limits
from hf_gmar.app.models import ModelSet
from hf_gmar.app.work import Job
from hf_gmar.errors import OptionError, TargetError
from hf_gmar.explainer import Explainer
from hf_gmar.explanation import Explanation
from hf_gmar.explanations import Explanations
from hf_gmar.faithfulness import FaithfulnessCheck
from hf_gmar.heads.head_methods import head_maps
from hf_gmar.heads.importance import head_importance
from hf_gmar.methods.registry import DEFAULT_METHODS, METHODS, with_pixels
from hf_gmar.metrics.patch_ranking import patch_order
from hf_gmar.models.labels import config_of, labels_of

_PLACE = re.compile(r"\s*(\d{1,6})\s*,\s*(\d{1,6})\s*")
_STEPS = 20  # numbers of patches on the slider
_AT_ONCE = 8  # copies of the image between two reports


@dataclass(frozen=True)
class Question:
    """What a visitor asks, as texts.

    Attributes:
        image: an example or the bytes of a file, see ``open_visitors_image``.
        model: a model of the list.
        prompts: the classes of a model of image and text, one in a line.
        target: a class by name or index; empty for the most probable one.
        contrast: the class that is subtracted; empty for none.
        methods: names of methods; empty names are left out.
    """

    image: str
    model: str
    prompts: str = ""
    target: str = ""
    contrast: str = ""
    methods: tuple[str, ...] = DEFAULT_METHODS

    def checked(self, limits: Limits) -> Question:
        """Return the question without empty methods and spaces.

        Raises:
            TargetError: the name of a class is too long.
            OptionError: there is no such method, or it has options.
        """
        if max(len(self.target), len(self.contrast)) > limits.letters:
            raise TargetError(f"a class has a name of at most {limits.letters} letters")
        if len(self.prompts) > limits.prompts * (limits.letters + 2):
            raise OptionError(f"give at most {limits.prompts} prompts")
        methods = tuple(dict.fromkeys(name for name in self.methods if name))
        for name in methods:
            if name not in METHODS:
                raise OptionError(
                    f"there is no method {brief(name)!r}; there are {', '.join(METHODS)}"
                )
        return Question(
            self.image,
            self.model,
            self.prompts,
            self.target.strip(),
            self.contrast.strip(),
            methods or DEFAULT_METHODS[:1],
        )

    @property
    def texts(self) -> list[str]:
        """The prompts, without empty lines and repetitions."""
        lines = (line.strip() for line in self.prompts.splitlines())
        return list(dict.fromkeys(line for line in lines if line))


@dataclass(frozen=True)
class ClassScore:
    """A class with its score, as text.

    Attributes:
        index: the index of the class.
        label: its name.
        score: its probability or value.
    """

    index: int
    label: str
    score: str


@dataclass(frozen=True)
class Answer:
    """The explanations of an image, with the scores of all classes.

    Attributes:
        results: the explanation by each method.
        classes: all classes, from the highest score to the lowest.
    """

    results: Explanations
    classes: list[ClassScore]


def answer(question: Question, models: ModelSet, limits: Limits, job: Job) -> Answer:
    """Explain an image, by pixels where a method has them.

    Raises:
        HfGmarError: an input is not allowed, or does not fit the model.
    """
    question = question.checked(limits)
    loaded = models.get(question.model, question.texts, limits)
    image = open_visitors_image(question.image, loaded.channels, limits)
    job.report("Explaining")
    explainer = Explainer(loaded, with_pixels(question.methods, ModelAdapter.of(loaded.model)))
    results = explainer(image, question.target or None, question.contrast or None)
    return Answer(results, _class_scores(results[0]))


def _class_scores(result: Explanation) -> list[ClassScore]:
    subject, kind = result._asked, result.score_kind
    request = ForwardRequest(subject.pixels, kwargs=subject.forward_kwargs)
    values = kind.convert(predict(subject.adapter, request))[0].flatten()
    labels = labels_of(config_of(subject.adapter), len(values))
    order = torch.argsort(values, descending=True, stable=True).tolist()
    return [ClassScore(index, labels[index], kind.text(float(values[index]))) for index in order]


def check(answer: Answer, job: Job) -> list[FaithfulnessCheck]:
    """Check each map against random patches."""
    job.report("Checking the maps against random patches")
    return answer.results.check()


@dataclass(frozen=True)
class Reveal:
    """The score with only a map's highest patches.

    Attributes:
        result: the explanation.
        ranks: the place of each patch in the map's order, (rows, columns), from 0.
        counts: numbers of patches, rising, the last of them all patches.
        scores: the score with that many patches.
    """

    result: Explanation
    ranks: Tensor
    counts: list[int]
    scores: list[float]

    @property
    def enough(self) -> int | None:
        """The place of the first number of patches that keeps 90 % of the score, if any."""
        whole = self.scores[-1]
        kept = (place for place, score in enumerate(self.scores) if score >= 0.9 * whole)
        return next(kept, None) if whole > 0 else None


def reveal(answer: Answer, job: Job) -> list[Reveal]:
    """Ask the model for its score with the highest patches of each map, for about 20 numbers."""
    results, reveals = answer.results, []
    for number, result in enumerate(results):
        counts = steps(result.patches.numel())
        order = patch_order(result.patches)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order))
        bound = result._asked.bind()
        scores: list[float] = []
        for start in range(0, len(counts), _AT_ONCE):
            share = (number + start / len(counts)) / len(results)
            job.report("Asking the model about parts of the image", share)
            masks = [ranks < count for count in counts[start : start + _AT_ONCE]]
            kept = torch.stack(masks).unflatten(1, bound.grid)
            scores += result._explained.of(bound.scores(kept))
        reveals.append(Reveal(result, ranks.view(result.patches.shape), counts, scores))
    return reveals


def steps(total: int, most: int = _STEPS) -> list[int]:
    """Return rising numbers of patches from 1 to ``total``, denser at the beginning.

    Example:
        >>> steps(64, 6), steps(3)
        ([1, 2, 5, 12, 28, 64], [1, 2, 3])
    """
    ratio = [total ** (place / (most - 1)) for place in range(most)]
    return sorted({min(total, round(value)) for value in ratio})


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model on one image.

    Attributes:
        result: the explanation of the class.
        importance: GMAR's share of each head in its layer, (layers, H).
        maps: the attention of each head from the readout, (layers, H, rows, columns).
    """

    result: Explanation
    importance: Tensor
    maps: Tensor


def heads(answer: Answer, job: Job) -> Heads:
    """Return the importance of each head for the explained class, and where it attends.

    Raises:
        UnsupportedModelError: the model's heads can't be read.
    """
    job.report("Reading the attention heads")
    result = answer.results[0]
    subject = result._asked
    model, keywords = subject.adapter.model, dict(subject.forward_kwargs)
    found = head_importance(model, subject.pixels, target=result.target, **keywords)
    job.report("Reading the attention heads", 0.5)
    maps = head_maps(model, subject.pixels, **keywords)
    return Heads(result, found.values[0].cpu(), maps[0].float().cpu())


@dataclass(frozen=True)
class PatchAttention:
    """Where each head attends from one patch.

    Attributes:
        place: row and column of the patch, from 0.
        maps: the attention of each head from the patch, (layers, H, rows, columns).
    """

    place: tuple[int, int]
    maps: Tensor


def attention(
    question: Question, place: str, models: ModelSet, limits: Limits, job: Job
) -> PatchAttention:
    """Return where each head attends from a patch: ``head_maps(readout=(row, column))``.

    The maps are of no class, so that the question's class, contrast and methods do not matter.

    Args:
        question: the image, the model and its prompts.
        place: row and column of the patch, from 0, such as ``"3,5"``.
        models: the models that are offered.
        limits: what is allowed.
        job: the request.

    Raises:
        OptionError: the place is no row and column.
        InputError: the patch is outside of the image's grid.
        UnsupportedModelError: the model's tokens are no fixed grid of patches.
        HfGmarError: an input is not allowed, or does not fit the model.
    """
    row_and_column = place_of(place)
    question = question.checked(limits)
    loaded = models.get(question.model, question.texts, limits)
    _ = ModelAdapter.of(loaded.model).tokens  # raises the error of a model that has none
    image = open_visitors_image(question.image, loaded.channels, limits)
    job.report("Reading the attention of the patch")
    pixels = loaded.pixels(image)
    maps = head_maps(loaded.model, pixels, readout=row_and_column, **loaded.forward_kwargs)
    return PatchAttention(row_and_column, maps[0].float().cpu())


def place_of(text: str) -> tuple[int, int]:
    """Return the row and the column that a text names.

    Raises:
        OptionError: it names none.

    Example:
        >>> place_of("3, 5")
        (3, 5)
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise OptionError(
            f"a patch is named by its row and column from 0, such as 3,5; got {brief(text, 40)!r}"
        )
    return int(found[1]), int(found[2])


def allowed_methods(names: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return the title and the name of each method, those of the beginning first."""
    known = list(names or METHODS)
    ordered = [*(name for name in DEFAULT_METHODS if name in known), *known]
    return [(METHODS[name].title, name) for name in dict.fromkeys(ordered)]
