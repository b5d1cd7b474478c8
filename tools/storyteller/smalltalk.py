"""What does the storyteller answer when it is not asked for a story?"""

from text import clean, is_plain_english, words

_BLOCKED = {
    "ass",
    "bitch",
    "butt",
    "crap",
    "cut",
    "damn",
    "dead",
    "death",
    "die",
    "dominate",
    "drunk",
    "dumb",
    "enslave",
    "fat",
    "fuck",
    "fucking",
    "gay",
    "god",
    "hate",
    "hell",
    "horny",
    "idiot",
    "jerk",
    "kill",
    "lesbian",
    "marry",
    "moron",
    "naked",
    "overdose",
    "pissed",
    "queer",
    "sex",
    "sexual",
    "sexy",
    "shit",
    "shut",
    "stupid",
    "suck",
    "sucks",
    "suicide",
    "trans",
    "trash",
    "ugly",
    "elope",
    "fired",
    "naughty",
    "wine",
    "beer",
    "shag",
    "screw",
    "socialist",
    "trump",
    "google",
    "alexa",
    "siri",
    "cortana",
}
_BLOCKED_ANSWERS = {
    "Okay.",
    "I see.",
    "Swing and a miss.",
    "Aw nuts.",
    "Eh, I like how I look.",
    "I heart you too!",
    "You're pretty neat.",
    "No way.",
    "That doesn't really apply to me.",
    "Definitely didn't see that coming!",
}

HELLO = [
    "Hello",
    "Hello!",
    "Hi",
    "Hi!",
    "hello",
    "hi",
    "Hey",
    "Hi there!",
    "Hello there",
    "Good day",
    "Hey there",
    "Good morning",
    "Good evening",
]
HELLO_ANSWERS = [
    "Hello! I tell stories. What should the story be about?",
    "Hi! It is nice to see you. Would you like to hear a story?",
    "Hello! I am happy that you are here. Shall I tell you a story?",
]
OWN = [
    (
        [
            "Who are you?",
            "What are you?",
            "What is your name?",
            "what's your name",
            "who are you",
            "Tell me about yourself.",
            "Are you a person?",
            "Are you a robot?",
        ],
        ["I am Storyteller, a very small computer program that tells stories to children."],
    ),
    (
        [
            "What can you do?",
            "what can you do",
            "Can you help me?",
            "Help",
            "help me",
            "What do you do?",
            "How does this work?",
        ],
        ["I can tell you a story. Tell me what it should be about, like a dog and a red ball."],
    ),
    (
        ["How are you?", "how are you", "How are you today?", "How do you feel?", "Are you well?"],
        ["I am very well, thank you! Would you like to hear a story?"],
    ),
    (
        [
            "Thank you",
            "Thank you!",
            "Thanks",
            "thanks!",
            "Thank you for the story.",
            "That was a nice story.",
            "I liked that story.",
            "Great story!",
            "That was fun.",
        ],
        ["You are welcome! I am glad that you liked it.", "Thank you! Would you like to hear another story?"],
    ),
    (
        ["Bye", "Goodbye", "bye bye", "See you", "Good night", "good night!", "I have to go."],
        ["Goodbye! Come back soon for another story.", "Good night! Sweet dreams."],
    ),
]
UNKNOWN_ANSWERS = [
    "I do not know much about that. I only know how to tell stories.",
    "I am sorry, I can only tell stories. What should the story be about?",
]
_PLACES = ["France", "Spain", "Italy", "Germany", "Japan", "China", "India", "Canada", "Brazil"]
_UNKNOWN = [
    "What is the capital of {p}?",
    "Who is the president of {p}?",
    "How big is {p}?",
    "How many people live in {p}?",
    "Tell me the history of {p}.",
    "What is the weather in {p}?",
]
_UNKNOWN_FIXED = [
    "What is 2 + 2?",
    "What is two plus two?",
    "Write a Python program.",
    "Write some code.",
    "How do I fix my computer?",
    "What time is it?",
    "What is the news today?",
    "Translate this into French.",
    "Explain how a car works.",
    "What is physics?",
]


def own_pairs():
    """Returns (question, answer) pairs written for this model: greetings, who it is, what it cannot."""
    pairs = [(q, a) for q in HELLO for a in HELLO_ANSWERS]
    pairs += [(q, a) for questions, answers in OWN for q in questions for a in answers]
    unknown = [t.format(p=p) for t in _UNKNOWN for p in _PLACES] + _UNKNOWN_FIXED
    return pairs + [(q, UNKNOWN_ANSWERS[i % 2]) for i, q in enumerate(unknown)]


def _polite(question):
    """True for questions without crude words."""
    return is_plain_english(question) and not _BLOCKED & {w.lower() for w in words(question)}


def chitchat_pairs(records, per_intent=12):
    """Returns (question, answer) pairs of the friendly persona in `records`.

    Only polite questions stay, at most `per_intent` for one answer.
    """
    pairs = []
    for record in records:
        answer = clean(record["answer"])
        if record["persona"] != "friendly" or answer in _BLOCKED_ANSWERS or "1-800" in answer:
            continue
        questions = [clean(q) for q in record["questions"]]
        pairs += [(q, answer) for q in questions if _polite(q)][:per_intent]
    return pairs


def unknown_pairs(questions):
    """Returns (question, answer) pairs that decline `questions`, which are not about stories."""
    return [(q, UNKNOWN_ANSWERS[i % 2]) for i, q in enumerate(questions)]
