"""Prompts for one person in many places (PersonalVideo's simulated prompt augmentation, Section 3.4).

A prompt list is a text file, a prompt a line; lines that begin with # are for people. `{person}` in a line
stands for whoever it is.
"""

from collections.abc import Sequence
from pathlib import Path

from .vision import Schema, VisionClient

PERSON = "{person}"
SHIPPED = Path(__file__).with_name("prompts.txt")
AT_ONCE = 10
"""Prompts that a model is asked for in one answer."""
QUESTION = """Write {count} prompts for a text-to-video model, one to each name of the JSON object. In each
one person does something in some place: a single plain English sentence of 8 to 25 words on what happens and
where, with the text {person} exactly once in the place of the person. Say nothing of the person's looks, age,
sex or name. Vary place, action, light, mood, distance and style: no two alike{unlike}.{about}
Answer with one JSON object with exactly the names {names}."""


def read_prompts(path: Path | str = SHIPPED, person: str = "a person") -> list[str]:
    """The prompts of a list's file; see `prompts_of`.

    Raises:
        ValueError: there is no such file, no prompt in it, or it is no text.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no prompt list at {path}: give a text file with a prompt a line.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no prompt list: give a text file with a prompt a line.") from None
    prompts = prompts_of(text, person)
    if not prompts:
        raise ValueError(f"{path} holds no prompt: give a text file with a prompt a line.")
    return prompts


def prompts_of(text: str, person: str = "a person") -> list[str]:
    """The prompts of a list, with the words that stand for the person."""
    lines = [line.strip() for line in text.splitlines()]
    return [filled(line, person) for line in lines if line and not line.startswith("#")]


def filled(prompt: str, person: str) -> str:
    """The prompt with the person's words; they begin a sentence with a capital."""
    told = prompt.replace(PERSON, person)
    return told[:1].upper() + told[1:] if prompt.startswith(PERSON) else told


def ask_prompts(client: VisionClient, count: int, about: str = "") -> list[str]:
    """As many prompts by a language model, none twice, each with `{person}` once.

    Args:
        about: what they should be of, for the model to read; "" leaves it to the model.

    Raises:
        NobodyAnswers: there is no server, or it refuses.
        ValueError: the model gives too few that are good.
    """
    prompts: list[str] = []
    for _ in range(2 * -(-count // AT_ONCE)):
        wanted = min(AT_ONCE, count - len(prompts))
        if wanted <= 0:
            break
        answer = client.ask(_question(wanted, prompts, about), [], _schema(wanted))
        prompts += _good(list((answer or {}).values()), prompts)
    if len(prompts) < count:
        raise ValueError(
            f"{client.settings.vision_model} gave {len(prompts)} good prompts, and {count} are wanted: take "
            "another model, or fewer prompts."
        )
    return prompts


def prompt_list(prompts: Sequence[str], made_by: str) -> str:
    """The text of a list's file."""
    return "\n".join([f"# {made_by}; {PERSON} stands for who it is.", *prompts]) + "\n"


def _good(said: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those that are usable and new, on one line each."""
    taken, good = {prompt.casefold() for prompt in known}, list[str]()
    for prompt in said:
        line = " ".join(prompt.split())
        if line.count(PERSON) == 1 and not line.startswith("#") and line.casefold() not in taken:
            taken.add(line.casefold())
            good.append(line)
    return good


def _question(count: int, known: Sequence[str], about: str) -> str:
    unlike = "".join(f"\n- {prompt}" for prompt in known[-20:])
    told = {
        "{count}": str(count),
        "{names}": ", ".join(_schema(count)),
        "{unlike}": f", and none like these:{unlike}\n" if unlike else "",
        "{about}": f" All are of this: {about}." if about else "",
    }
    question = QUESTION
    for word, text in told.items():  # not by format: {person} stays as it is
        question = question.replace(word, text)
    return question


def _schema(count: int) -> Schema:
    return {f"prompt_{n}": {"type": "string", "minLength": 20, "maxLength": 240} for n in range(1, count + 1)}
