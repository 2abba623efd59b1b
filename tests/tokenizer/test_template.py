"""Chat templates come with models: what a good one gives, and what a bad one may not do."""

from __future__ import annotations

import datetime
import time

import pytest

from salalocal.errors import BadTokenizer
from salalocal.tokenizer import template as module
from salalocal.tokenizer.template import ChatTemplate, TemplateRefused, render

LOOP = "{% for m in messages %}"


def test_layout_is_the_templates_own_text(chatml: str) -> None:
    assert ChatTemplate(chatml, "", "").layout(["system", "user"]) == (
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    )


def test_what_templates_are_given() -> None:
    source = (
        "{{ bos_token }}{{ messages|length }}{{ add_generation_prompt }}{{ {'a': 'é<'}|tojson }}"
        "{{ strftime_now('%Y') }}{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        "\n  {% if true %}\nx{% endif %}{{ messages[0].content }}{{ eos_token }}"
    )
    before, after = ChatTemplate(source, "<s>", "</s>").layout(["user"])
    year = datetime.datetime.now().year
    assert before == f'<s>1True{{"a": "é<"}}{year}01x'  # the line end after a block is dropped, and space before one
    assert after == "</s>"


def test_a_layout_is_rendered_once(chatml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(source: str, variables: dict[str, object]) -> str:
        calls.append(source)
        return render(source, variables)

    monkeypatch.setattr(module, "render", counted)
    template = ChatTemplate(chatml, "", "")
    assert template.layout(["user"]) == template.layout(("user",))
    template.layout(["user", "assistant", "user"])
    assert len(calls) == 2


@pytest.mark.parametrize(
    "source",
    [
        "no message at all",
        "{{ messages[0].content }}",
        LOOP + "{{ m.content }}{{ m.content }}{% endfor %}",
        LOOP + "{{ m.content|upper }}{% endfor %}",
        LOOP + "{{ m.content[:9] }}{% endfor %}",
        LOOP + "{{ m.content }}{% endfor %}{{ messages[0].content|upper }}",
        "{% for m in messages|reverse %}{{ m.content }}{% endfor %}",
    ],
)
def test_messages_must_come_once_unchanged_and_in_order(source: str) -> None:
    with pytest.raises(BadTokenizer, match="the chat template"):
        ChatTemplate(source, "", "").layout(["user", "assistant"])


HOSTILE = {
    "endless loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "stopped"),
    "one endless operation": ("{{ 2 ** (10 ** 9) }}", "stopped"),
    "a giant string": ("{{ 'a' * 10 ** 9 }}", "memory"),
    "a doubling string": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "memory",
    ),
    "giant output": ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", "text"),
    "attributes to climb on": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "may not do"),
    "a changed message list": ("{{ messages.append(1) }}", "may not do"),
    "no syntax": ("{% for", "TemplateSyntaxError"),
    "an undefined name": ("{{ nothing.at.all }}", "UndefinedError"),
    "a wrong type": ("{{ 'a' + 1 }}", "TypeError"),
    "deep nesting": ("{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "nested too deeply"),
    "a file": ("{% include '/etc/passwd' %}", "cannot be rendered"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str) -> None:
    source, message = HOSTILE[name]
    start = time.monotonic()
    with pytest.raises(BadTokenizer, match=message):
        ChatTemplate(source, "", "").layout(["user"])
    assert time.monotonic() - start < 15  # 2 s of rendering, and a busy machine


def test_the_parent_watches_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no limits (Windows), the parent ends the child: here the limit is nearly 0."""
    monkeypatch.setattr(module, "_resident_bytes", lambda _pid: 1 << 40)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(BadTokenizer, match="stopped at 256 MB"):
        render(loop, {})


def test_a_template_may_refuse() -> None:
    with pytest.raises(TemplateRefused, match="roles must alternate") as caught:
        ChatTemplate("{{ raise_exception('roles must alternate\x1b[2J\\n') }}", "", "").layout(["user"])
    assert str(caught.value).isprintable()  # its words cannot steer a terminal


def test_an_oversized_template_is_not_rendered() -> None:
    with pytest.raises(BadTokenizer, match="1,048,577 characters"):
        ChatTemplate("a" * (1024 * 1024 + 1), "", "")
