"""Rows that are chats: as the tokenizer's chat template writes them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from wtacrs_experiments.run.glue import TaskError


def answered(where: str, messages: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The chat up to its last message, and that message, of the assistant.

    Raises:
        TaskError: no such chat, or a template that refuses it.
    """
    _check(where, messages, tokenizer)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise TaskError(
            f"{where}: the last of at least two messages must be the assistant's, to be learnt"
        )
    before = asked(where, messages, tokenizer)
    whole = _written(where, messages, tokenizer)
    if not whole.startswith(before):
        raise TaskError(
            f"{where}: the chat template writes the messages before the last one in another way "
            "once there is an answer, so no prompt can be told; give prompt and completion"
        )
    return before, whole[len(before) :]


def asked(where: str, messages: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat up to what the assistant is to say; an answer that is there is left out.

    Raises:
        TaskError: no chat, or a template that refuses it.
    """
    _check(where, messages, tokenizer)
    before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    return _written(where, before, tokenizer, add_generation_prompt=True)


def _check(where: str, messages: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise TaskError(
            f"{where}: has messages, and the tokenizer has no chat template; give prompt and "
            "completion, or the tokenizer of a model that chats"
        )
    made = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and "content" in one
        for one in messages
    )
    if not made or not messages:
        raise TaskError(f"{where}: messages must be a list of {{role, content}}")


def _written(where: str, messages: Any, tokenizer: PreTrainedTokenizerBase, **more: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **more))
    except Exception as error:  # a template is a program, and refuses in its own way
        raise TaskError(f"{where}: the chat template refuses the messages ({error})") from error
