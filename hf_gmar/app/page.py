"""The page: its parts, and which request each of them starts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any

import gradio as gr

from hf_gmar._utils.text import brief
from hf_gmar.app import answers, markup
from hf_gmar.app.answers import Answer, ClassScore, Question
from hf_gmar.app.guard import NoFiles
from hf_gmar.app.images import EXAMPLES, example_of
from hf_gmar.app.limits import Limits
from hf_gmar.app.messages import (
    ERROR_CLASS,
    error_html,
    progress_html,
    shown_error,
    shown_errors,
)
from hf_gmar.app.models import ModelSet
from hf_gmar.app.work import Desk, Done, Job, Progress, StoppedError
from hf_gmar.errors import HfGmarError, InputError
from hf_gmar.methods.registry import DEFAULT_METHODS, METHODS

_MOST_CLASSES = 2000  # names in the list; others can be typed
_SILENT = 4  # items of unchanged progress, five a second, that are left out between two others

TOP_CLASS = ("Most probable class", "")
NO_CONTRAST = ("None", "")
NO_METHOD = ("None", "")

_CHECK = (
    "Does the model really use what a map shows? The model cuts an image into small squares, the "
    "patches. It is asked again with only the map's most relevant patches, then without them. The "
    "same is done with patches chosen at random: a good map does better than those."
)
_REVEAL = "How little of the image is enough? Patches appear, the most relevant first."
_HEADS = (
    "A look inside. The model works in layers, and each layer has several heads that choose from "
    "where in the image to take information."
)

_TAKE_IMAGE = """
const connect = () => {
  const upload = element.querySelector("gmar-upload");
  if (!upload || upload.connected) return upload;
  upload.connected = true;
  upload.addEventListener("chosen", event => {
    props.value = event.detail;
    trigger("upload");
  });
  return upload;
};
customElements.whenDefined("gmar-upload").then(() => connect()?.show(props.value ?? ""));
watch("value", () => connect()?.show(props.value ?? ""));
"""


_TAKE_PATCH = """
document.addEventListener("patch", event => {
  props.value = event.detail;
  trigger("input");
});
"""


_FORGET_CLASSES_OF_ANOTHER_MODEL = """
model => {
  const same = (window.gmarModel ?? model) === model;
  window.gmarModel = model;
  return Array(2).fill(same ? {__type__: "update"} : "");
}
"""
_NOTE_MODEL = "model => { window.gmarModel = model; }"


class Page:
    """The page with its models and its queue.

    Args:
        models: the models that are offered.
        limits: what one visitor may ask.

    Attributes:
        blocks: the application of Gradio.
        desk: the queue.
    """

    def __init__(self, models: ModelSet, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.desk = Desk(limits)
        self.blocks = NoFiles(title="hf-gmar", analytics_enabled=False)
        with self.blocks:
            self._build()

    def warm_up(self, job: Job) -> None:
        """Explain an example, so that the first visitor does not wait for imports."""
        question = Question(f"example:{EXAMPLES[0]}", self.models.names[0])
        with suppress(HfGmarError):
            answer = answers.answer(question, self.models, self.limits, job)
            markup.explanation_html(question, answer)

    def _build(self) -> None:
        gr.HTML(
            "<h1>Why did the model say that?</h1><p>Give the model an image, and it says what it "
            "sees. The maps show which parts of the image led to that answer, and a check tells "
            "whether to believe them. Images are forgotten with the answer: none is stored on the "
            "server.</p>"
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=320, elem_classes="gmar-inputs"):
                inputs = self._inputs()
            with gr.Column(scale=5, min_width=320):
                status = gr.HTML(elem_classes="gmar-status")
                result = gr.HTML()
                sections, place, attention = self._sections()
        image, model, prompts, target, contrast, *_ = inputs
        outputs = [
            status, result, target, contrast, *(section for _, section in sections), attention,
        ]  # fmt: skip
        explain: dict[str, Any] = {
            "fn": self.explain, "inputs": inputs, "outputs": outputs,
            **_QUIET, "api_name": "explain",
        }  # fmt: skip
        hidden = {**explain, "api_name": None, "api_visibility": "private"}
        forget = {"fn": None, "js": "() => ['', '']", "outputs": [target, contrast]}
        # Not "input", which a list also sends when it is left with nothing chosen: that question
        # could overtake the next one.
        gr.on([part.change for part in inputs[3:]], **explain)
        prompts.submit(**forget, **_PRIVATE).then(**hidden)
        image.upload(**forget, **_PRIVATE).then(**hidden)
        model.change(
            None, model, [target, contrast],
            js=_FORGET_CLASSES_OF_ANOTHER_MODEL, **_PRIVATE,
        ).then(self.model_chosen, model, prompts, **_PRIVATE, **_QUIET).then(**hidden)  # fmt: skip
        self.blocks.load(self.first_state, None, inputs, **_PRIVATE, **_QUIET).then(
            None, model, js=_NOTE_MODEL, **_PRIVATE
        ).then(**hidden)
        for (kind, html), (button, section) in zip(_FURTHER.items(), sections, strict=True):
            button.click(self._further(kind, html), inputs, section, **_QUIET, api_name=kind)
        clear: dict[str, Any] = {"fn": None, "js": "() => ''", "outputs": attention}
        place.input(**clear, **_PRIVATE).then(
            self.attention, [image, model, prompts, place], attention, **_QUIET,
            api_name="attention",
        )  # fmt: skip

    def _inputs(self) -> list[Any]:
        """Return the inputs in the order of a question's attributes."""
        names = self.models.names
        image = gr.HTML(
            f"example:{EXAMPLES[0]}",
            html_template=markup.examples_html(self.limits.image_bytes),
            js_on_load=_TAKE_IMAGE,
            elem_id="image",
        )
        model = gr.Dropdown(
            [(brief(name), name) for name in names], value=names[0], label="Model",
            visible=len(names) > 1, elem_id="model", allow_custom_value=True,
        )  # fmt: skip
        prompts = gr.Textbox(
            "\n".join(self.models.prompts), label="Prompts: the classes, one in a line",
            lines=3, visible=self.models.takes_prompts(names[0]), elem_id="prompts",
            info="Shift and Enter explain with them.", max_length=self.limits.letters * 20,
        )  # fmt: skip
        target = gr.Dropdown(
            [TOP_CLASS], value="", label="Class", info="The answer to explain. Type to search.",
            allow_custom_value=True, elem_id="class",
        )  # fmt: skip
        contrast = gr.Dropdown(
            [NO_CONTRAST], value="", label="Rather than", allow_custom_value=True,
            info="A second class: why the first, and not this one?", elem_id="contrast",
        )  # fmt: skip
        titles = answers.allowed_methods()
        first = gr.Dropdown(
            titles, value=DEFAULT_METHODS[0], label="Method", elem_id="method",
            info=". ".join(f"{title}: {METHODS[name].shows}" for title, name in titles[:2]),
            allow_custom_value=True,
        )  # fmt: skip
        second = gr.Dropdown(
            [NO_METHOD, *titles], value=DEFAULT_METHODS[1], label="Second method",
            info="Another map, to compare.", elem_id="second", allow_custom_value=True,
        )  # fmt: skip
        return [image, model, prompts, target, contrast, first, second]

    def _sections(self) -> tuple[list[tuple[Any, Any]], Any, Any]:
        """Return the button and the output of each further question, then those of a patch."""
        with gr.Tabs():
            with gr.Tab("Check"):
                check = _section(_CHECK, "Check against random patches", "check")
            with gr.Tab("Needed patches"):
                reveal = _section(_REVEAL, "Show patches one after the other", "reveal")
            with gr.Tab("Heads"):
                heads = _section(_HEADS, "Show the heads", "heads")
                place = gr.HTML("", js_on_load=_TAKE_PATCH, elem_id="place")
                attention = gr.HTML(elem_id="attention")
        return [check, reveal, heads], place, attention

    def first_state(self, request: gr.Request) -> list[Any]:
        """Return the inputs that a link names, or those of the beginning."""
        query: Mapping[str, str] = dict(request.query_params)
        seed = query.get("example", "")
        image = f"example:{seed}" if example_of(f"example:{seed}") else f"example:{EXAMPLES[0]}"
        model = query.get("model", "")
        model = model if model in self.models.names else self.models.names[0]
        prompts = query.get("prompts") or "\n".join(self.models.prompts)
        methods = [name for name in query.get("methods", "").split(",") if name in METHODS]
        first, *more = methods or DEFAULT_METHODS
        return [
            image,
            model,
            gr.Textbox(
                prompts[: self.limits.letters * self.limits.prompts],
                visible=self.models.takes_prompts(model),
            ),
            query.get("class", "")[: self.limits.letters],
            query.get("contrast", "")[: self.limits.letters],
            first,
            more[0] if more else "",
        ]

    def model_chosen(self, model: Any) -> Any:
        """Show the prompts of a model that takes them."""
        with shown_errors():
            return gr.Textbox(visible=self.models.takes_prompts(_text(model)))

    async def explain(
        self,
        image: Any,
        model: Any,
        prompts: Any,
        target: Any,
        contrast: Any,
        method: Any,
        second: Any,
        request: gr.Request,
    ) -> AsyncIterator[Any]:
        """Explain an image: yield the outputs of the page."""
        question = _question(image, model, prompts, target, contrast, method, second)

        def work(job: Job) -> list[Any]:
            answer = answers.answer(question, self.models, self.limits, job)
            job.report("Drawing")
            return [
                "",
                markup.explanation_html(question, answer),
                *_class_lists(question, answer),
                *[""] * _SECTIONS,
            ]

        async for item in self._run("explain", work, request):
            if isinstance(item, str):  # an error leaves nothing of another image
                rest = "" if ERROR_CLASS in item else gr.skip()
                yield [item, rest, gr.skip(), gr.skip(), *[rest] * _SECTIONS]
            else:
                yield item

    def _further(self, kind: str, html: Callable[[Answer, Job], str]) -> Callable[..., Any]:
        """Return the function of a further question: its HTML, about the map explained again."""

        async def ask(
            image: Any,
            model: Any,
            prompts: Any,
            target: Any,
            contrast: Any,
            method: Any,
            second: Any,
            request: gr.Request,
        ) -> AsyncIterator[str]:
            question = _question(image, model, prompts, target, contrast, method, second)

            def work(job: Job) -> str:
                return html(answers.answer(question, self.models, self.limits, job), job)

            async for item in self._run(kind, work, request):
                yield item

        return ask

    async def attention(
        self, image: Any, model: Any, prompts: Any, place: Any, request: gr.Request
    ) -> AsyncIterator[Any]:
        """Read the attention of one patch: yield its element."""
        question = _question(image, model, prompts)
        with shown_errors():
            text = _text(place)

        def work(job: Job) -> str:
            found = answers.attention(question, text, self.models, self.limits, job)
            return markup.attention_html(found)

        async for item in self._run("attention", work, request):
            yield item

    async def _run(
        self, kind: str, work: Callable[[Job], Any], request: gr.Request
    ) -> AsyncIterator[Any]:
        """Yield the progress as HTML, and the result; raise errors as messages of the page.

        Gradio looks only between two items whether the visitor has left. So progress that does not
        change is yielded again from time to time.
        """
        shown: Progress | None = None
        silent = 0
        try:
            async for item in self.desk.run(request.session_hash or "", kind, work):
                if isinstance(item, Done):
                    yield item.result
                elif item != shown or silent == _SILENT:
                    shown, silent = item, 0
                    yield progress_html(item)
                else:
                    silent += 1
        except StoppedError:
            yield gr.skip() if kind != "explain" else [gr.skip()] * (4 + _SECTIONS)
        except Exception as error:  # noqa: BLE001  # of any model
            yield error_html(error)
            raise shown_error(error) from None


_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {
    "show_progress": "hidden", "trigger_mode": "multiple", "concurrency_limit": None,
}  # fmt: skip


def _checked(answer: Answer, job: Job) -> str:
    return markup.checks_html(answer.results, answers.check(answer, job))


def _revealed(answer: Answer, job: Job) -> str:
    return markup.reveals_html(answers.reveal(answer, job))


def _headed(answer: Answer, job: Job) -> str:
    return markup.heads_html(answers.heads(answer, job))


_FURTHER: dict[str, Callable[[Answer, Job], str]] = {
    "check": _checked,
    "reveal": _revealed,
    "heads": _headed,
}


_SECTIONS = len(_FURTHER) + 1  # the attention of a patch


def _question(*values: Any) -> Question:
    with shown_errors():
        image, model, prompts, *rest = map(_text, values)
    target, contrast, *methods = rest or ("", "")
    return Question(image, model, prompts, target, contrast, tuple(methods))


def _section(text: str, action: str, elem: str) -> tuple[Any, Any]:
    """Return the button and the output of a further question, below a text."""
    gr.HTML(f"<p>{text}</p>")
    return gr.Button(action, elem_id=f"{elem}-button", size="md"), gr.HTML(elem_id=elem)


def _text(value: Any) -> str:
    """Return an input, which the page sends as a text, but a program may send as anything.

    Raises:
        InputError: it is no text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(f"each input is a text; got {type(value).__name__}")
    return value


def _class_lists(question: Question, answer: Answer) -> list[Any]:
    """Return the lists of classes, from the most probable one, with the chosen ones."""
    first = answer.results[0]
    choices = [_choice(item) for item in answer.classes[:_MOST_CLASSES]]
    target = f"index:{first.target}" if question.target.strip() else ""
    contrast = "" if first.contrast_target is None else f"index:{first.contrast_target}"
    return [
        _class_list([TOP_CLASS, *choices], target, question.target),
        _class_list([NO_CONTRAST, *choices], contrast, question.contrast),
    ]


def _class_list(choices: list[tuple[str, str]], value: str, asked: str) -> Any:
    """Return a list; its value stays if it was asked for, as another may be chosen meanwhile."""
    return gr.Dropdown(choices) if value == asked else gr.Dropdown(choices, value=value)


def _choice(item: ClassScore) -> tuple[str, str]:
    return f"{brief(item.label, 80)}  {item.score}", f"index:{item.index}"
