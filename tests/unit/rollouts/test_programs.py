"""The program is found in what people and models write around it."""

from __future__ import annotations

import pytest

from mopd.rollouts.programs import extract_program

RIGHT = "def f(x): return x + 1"
WRITTEN = {  # each has a program whose f(1) is 2
    "alone": RIGHT,
    "python3": f"Here:\n```python3\n{RIGHT}\n```",
    "any case": f"```Python\n{RIGHT}\n```",
    "tildes": f"~~~py\n{RIGHT}\n~~~",
    "never closed": f"```python\n{RIGHT}",
    "CRLF": "```python\r\ndef f(x):\r\n    return x + 1\r\n```\r\n",
    "in a list": "1. Do:\n   ```python\n   def f(x):\n       return x + 1\n   ```",
    "in a quotation": "> ```python\n> def f(x):\n>     return x + 1\n> ```",
    "with its output": f"```python\n{RIGHT}\n```\nOutput:\n```\n2\n```",
    "with an example that fails": f"```python\n{RIGHT}\n```\nUsage:\n```python\nn = f(undefined)\n```",
    "with a session": f"```python\n{RIGHT}\n```\n```python\n>>> f(1)\n2\n```",
    "with tests of its own": f"```python\n{RIGHT}\n```\n```python\ndef test_f():\n    assert f(1) == 2\n```",
    "helper and main": "```python\ndef h(x): return x + 1\n```\nand\n```python\ndef f(x): return h(x)\n```",
    "main and helper": "```python\ndef f(x): return h(x)\n```\nwith\n```python\ndef h(x): return x + 1\n```",
    "import apart": "```python\nimport math\n```\n```python\ndef f(x): return math.floor(x) + 1\n```",
    "constant apart": "```python\nONE = 1\n```\n```python\ndef f(x): return x + ONE\n```",
    "a local name is no need": "```python\ndef f(x):\n    n = x\n    return n + 1\n```\n```python\nn = undefined\n```",
    "an older version": f"```python\ndef f(x): return x\n```\nFixed:\n```python\n{RIGHT}\n```",
    "another language": f"```bash\npip install numpy\n```\n```\n{RIGHT}\n```",
    "fence in a docstring": '````python\ndef f(x):\n    """\n    ```\n    f\n    ```\n    """\n    return x + 1\n````',
    "after a thought": f"<think>```python\ndef f(x): return 0\n```</think>```python\n{RIGHT}\n```",
    "an escape that Python warns of": f'```python\n{RIGHT}\npattern = "\\d"\n```',
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_the_program_is_found(text: str) -> None:
    names: dict[str, object] = {}
    exec(compile(extract_program(text, "assert f(1) == 2"), "program", "exec"), names)
    assert names["f"](1) == 2  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("    return x + 1\n", "    return x + 1\n"),
        ("a\n```python\nx = 1\n```\nb\n```py\nx = 2\n```\nc", "x = 2\n"),
        ("```Python\nx = 1", "x = 1"),
        ("```js\nx = 1\n```", "```js\nx = 1\n```"),
        (f"```python\n{RIGHT}\n```\nbetter:\n```python\ndef f(x): return (x +", "def f(x): return (x +"),
        ("```python\nn = int(input())\nprint(n + 1)\n```\n```\n2\n```", "n = int(input())\nprint(n + 1)\n"),
    ],
)
def test_which_text_is_the_program(text: str, program: str) -> None:
    """An answer that was cut off is none, a text without a block is all program, a script needs no function."""
    assert extract_program(text) == program


def test_what_tests_ask_for_is_taken() -> None:
    text = "```python\ndef f(x): return x\n```\n```python\ndef g(x): return 2 * x\n```"
    assert extract_program(text, "assert f(1) == 1").strip() == "def f(x): return x"
    assert "def f" in extract_program(text, "assert f(1) == g(1) - 1")
    assert "def g" in extract_program(text, "assert f(1) == g(1) - 1")
