"""What a model's scores are: probabilities by softmax or sigmoid, plain values, or none at all."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_gmar.errors import OptionError


class ScoreKind(StrEnum):
    """How to read the scores of a model.

    Example:
        >>> from transformers import ViTConfig
        >>> scores = torch.tensor([[58.3]])
        >>> kind = ScoreKind.of(ViTConfig(problem_type="regression", num_labels=1), scores)
        >>> kind.name, kind.text(float(kind.convert(scores))), kind.measure
        ('VALUE', '58.3', 'value')
        >>> ScoreKind.of(ViTConfig(), torch.zeros(1, 2)).text(0.5)
        '50.0%'
    """

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    VALUE = "value"
    NONE = "none"

    @classmethod
    def of(cls, config: PreTrainedConfig, scores: Tensor) -> ScoreKind:
        """Decide what the scores (B, C) of a model with this config are.

        Without any score, (B, 0), there is none. A multi-label config means a sigmoid for each
        class. A regression, a single output and outputs with more dimensions have plain values.
        Otherwise, a softmax is over the classes.
        """
        if not scores[:1].numel():
            return cls.NONE
        if config.problem_type == "multi_label_classification":
            return cls.SIGMOID
        is_value = config.problem_type == "regression" or scores.dim() != 2 or scores.shape[1] == 1
        return cls.VALUE if is_value else cls.SOFTMAX

    def convert(self, scores: Tensor) -> Tensor:
        """Convert scores (B, C) to probabilities, or leave the values; float32 or float64."""
        scores = scores.float() if scores.dtype != torch.float64 else scores
        if self is ScoreKind.SIGMOID:
            return scores.sigmoid()
        return scores.softmax(dim=-1) if self is ScoreKind.SOFTMAX else scores

    def text(self, score: float) -> str:
        """Format a converted score: a percentage, or a value with four digits or its integer.

        The text of no score is empty.

        Example:
            >>> [ScoreKind.VALUE.text(value) for value in (0.012344, -58.25, 12345.6, 3e12)]
            ['0.01234', '-58.25', '12346', '3e+12']
        """
        if self in _PROBABILITIES:
            return f"{score:.1%}"
        if self is ScoreKind.NONE:
            return ""
        return f"{score:.0f}" if 9999.5 <= abs(score) < 1e9 else f"{score:.4g}"

    @property
    def measure(self) -> str:
        """The word for a converted score."""
        return "probability" if self in _PROBABILITIES else "value"

    def measured(self, choice: str | None) -> str:
        """Return what metrics measure: ``"probability"``, ``"logit"`` or ``"value"``.

        Args:
            choice: ``"probability"``, ``"logit"``, or ``None`` for probabilities where there are
                any.

        Raises:
            OptionError: probabilities of a model that gives values.
        """
        if self in _PROBABILITIES:
            return choice or "probability"
        if choice == "probability":
            raise OptionError(
                "score='probability' needs a model with probabilities, and this one gives values "
                "(a regression, or a single output); leave score out to measure its value"
            )
        return "value"

    @property
    def note(self) -> str:
        """A sentence for a reader of several scores; empty for a softmax."""
        return _NOTES[self]


_PROBABILITIES = (ScoreKind.SOFTMAX, ScoreKind.SIGMOID)

_NOTES = {
    ScoreKind.SOFTMAX: "",
    ScoreKind.SIGMOID: "Each class is judged on its own: probabilities need not sum to 100%.",
    ScoreKind.VALUE: "The model gives values, not probabilities.",
    ScoreKind.NONE: "",
}
