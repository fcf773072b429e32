"""``vlmkit ask``: a trained VLM answers questions about images, from the command line, a pipe or a conversation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmkit.cli.options import Device, DeviceOption
from vlmkit.cli.output import print_error, print_json, print_note
from vlmkit.errors import UserError

if TYPE_CHECKING:
    from vlmkit.pipelines.ask import Assistant, Reply

COMMANDS = "/image PATH... shows other images, /tokens N another number of visual tokens, /quit leaves."


def ask(
    run: Annotated[Path, typer.Argument(help="Finished VLM run, of any stage, or a LLaVA-1.5 checkpoint.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[IMAGE]... [QUESTION]", help="Images to show together, then the question, in quotes."),
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="Ask about each image by itself.")] = False,
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Visual tokens of an image, of those the run serves.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer, at most.")] = 128,
    device: DeviceOption = Device.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of lines.")] = False,
) -> None:
    """Ask a VLM about images: `vlmkit ask RUN a.jpg b.jpg "what changed?"`.

    Without a question, questions are read from a pipe, one a line, each on its own; at a terminal a conversation
    begins, which keeps the images and what was said. Answers are printed one a line; with --each a line begins with
    its image and a tab.
    """
    from dataclasses import asdict

    from vlmkit.pipelines import ask as pipeline

    images, question = pipeline.split_images(words or [])
    converse = question is None and sys.stdin.isatty()
    if converse and (each or as_json):
        raise UserError("--each and --json are for given questions: add one behind the images, or pipe several in.")
    questions = [question] if question else [] if converse else [line.strip() for line in sys.stdin if line.strip()]
    if not converse and not questions:
        raise UserError("There is no question: add one behind the images, in quotes, or pipe some in, one a line.")
    if each and not images:
        raise UserError("--each asks about each image by itself: give some before the question.")
    assistant = pipeline.Assistant(run, pipeline.AskSettings(tokens, max_new_tokens, device.value))
    if converse:
        _converse(assistant, images)
    elif as_json:
        print_json([asdict(reply) for reply in assistant.ask(images, questions, each)])
    else:
        for reply in assistant.ask(images, questions, each):
            typer.echo(_line(reply, each))


def _line(reply: Reply, each: bool) -> str:
    return f"{reply.images[0]}\t{reply.answer}" if each else reply.answer


def _converse(assistant: Assistant, images: list[Path]) -> None:
    """A prompt until /quit or the end of input. What is refused is said, and the conversation goes on."""
    import readline  # noqa: F401 - gives the prompt its editing keys

    from vlmkit.pipelines.ask import Dialogue

    dialogue = Dialogue(assistant, images)
    print_note(f"Images shown: {len(images)}; visual tokens of each: {assistant.visual_tokens}. {COMMANDS}")
    while True:
        try:
            command, _, rest = (said := input("> ").strip()).partition(" ")
        except EOFError:
            return
        try:
            if command == "/quit":
                return
            if command == "/image":
                paths = [rest] if Path(rest).is_file() else rest.split()
                dialogue = Dialogue(assistant, [Path(path) for path in paths])
            elif command == "/tokens":
                assistant.use_tokens(int(rest) if rest.isdecimal() else 0)
            elif command.startswith("/"):
                raise UserError(f"There is no {command}: {COMMANDS}")
            elif said:
                dialogue.say(said, lambda text: typer.echo(text, nl=False))
                typer.echo("")
        except UserError as error:
            print_error(str(error))
