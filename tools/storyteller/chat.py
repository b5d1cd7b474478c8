"""How do a story and a conversation look as the text that the model reads?"""

BEGIN, END_OF_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
SPECIAL_TOKENS = [BEGIN, END_OF_TEXT, USER, ASSISTANT, SYSTEM, END]

SYSTEM_PROMPT = "You are a storyteller who tells simple stories to children."

# The same text as `conversation`, for programs that read tokenizer_config.json.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def plain_story(text):
    """Returns a story as one training document, without the begin token (the tokenizer adds it)."""
    return text + END_OF_TEXT


def conversation(turns, system=None):
    """Returns a conversation as one training document, without the begin token.

    `turns` is a list of (user text, answer) pairs; `system` an optional first message.
    """
    head = f"{SYSTEM}\n{system}{END}\n" if system else ""
    return head + "".join(f"{USER}\n{question}{END}\n{ASSISTANT}\n{answer}{END}\n" for question, answer in turns)
