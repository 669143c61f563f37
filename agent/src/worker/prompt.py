"""From a request to the token ids the model reads.

Promises: chats go through the model's own template, completions through its tokenizer with the special tokens that
belong before a text; whatever a template or tokenizer says to a row's content is the row's own 400; a prompt that
leaves no room for an answer is refused, not cut.
"""

import inspect

import faults
from request import Refused


def encode(request, model):
    """The prompt's tokens; raises `Refused`."""
    tokens = _chat(request, model) if request.chat else _completion(request.prompt, model)
    where = "messages" if request.chat else "prompt"
    if not tokens:
        raise Refused(f'"{where}" is empty', where, "invalid_value")
    if model.context_tokens is not None and len(tokens) >= model.context_tokens:
        raise Refused(
            f"the prompt has {len(tokens)} tokens, and the model's context is {model.context_tokens}, the answer included",
            where,
            "context_length_exceeded",
        )
    return tokens


def _completion(prompt, model):
    if isinstance(prompt, list):
        return prompt
    tokenizer = model.tokenizer
    # As mlx-lm does: a prompt that brings its own start token gets no second one.
    special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
    try:
        return list(tokenizer.encode(prompt, add_special_tokens=special))
    except Exception as error:
        raise Refused(f"the tokenizer refuses the prompt: {faults.describe(error)}", "prompt", "invalid_value") from error


def _chat(request, model):
    if not model.has_chat_template:
        raise Refused(
            f"the model {model.name} has no chat template: "
            "send the row to /v1/completions, or use an instruction-tuned model",
            "messages",
            "no_chat_template",
        )
    _check_arguments(request.template_arguments, model.tokenizer)
    try:
        return list(
            model.tokenizer.apply_chat_template(request.prompt, add_generation_prompt=True, **request.template_arguments)
        )
    except Exception as error:
        message = f"the model's chat template refuses the messages: {faults.describe(error)}"
        raise Refused(message, "messages", "template_error") from error


def _check_arguments(arguments, tokenizer):
    """Refuses what would steer the tokenizer instead of reaching the template."""
    reserved = inspect.signature(tokenizer._tokenizer.apply_chat_template).parameters.keys() | {"tokenize", "return_dict"}
    for name in arguments:
        if name in reserved:
            param = f"chat_template_kwargs.{name}"
            raise Refused(f'"{param}" is not the template\'s to decide', param, "unsupported_parameter")
