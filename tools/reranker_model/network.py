"""What is the network, and where does it begin? BERT with one label (transformers), of a size that ships."""

import torch
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification
from vocabulary import LONGEST, VOCAB_SIZE

_LIKENESS = 0.85  # how strongly half of the heads attend to like tokens at the start


def make_config():
    """Returns the `BertConfig` of the embedded reranker."""
    return BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=768,
        hidden_act="gelu",
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=1,
        pad_token_id=0,
    )


def make_model(vectors, seed=1):
    """Returns a `BertForSequenceClassification` at its start; `vectors` [n_tokens, hidden] are its token embedding.

    In every layer half of the heads begin with keys equal to queries, so that a token attends to its like: what a
    candidate has in common with the query is there from the first step (after Trockman and Kolter 2023, "Mimetic
    initialization of self-attention layers").
    """
    torch.manual_seed(seed)
    model = BertForSequenceClassification(make_config())
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.copy_(vectors)
        for layer in model.bert.encoder.layer:
            attention = layer.attention.self
            rows = attention.query.weight.shape[0] // 2
            start = torch.nn.init.orthogonal_(torch.empty_like(attention.query.weight))[:rows] * _LIKENESS
            attention.query.weight[:rows] = start
            attention.key.weight[:rows] = start
    return model


def logits(model, ids, types, mask):
    """Returns float [n_pairs]: what `model` answers, with the last layer computed for the first token alone.

    ids, types, mask: int64 [n_pairs, n_tokens]. Only the first token is asked for its answer, so a quarter of the work
    is saved.
    """
    hidden = model.bert.embeddings(input_ids=ids, token_type_ids=types)
    seen = mask[:, None, None, :].bool()
    *layers, last = model.bert.encoder.layer
    for layer in layers:
        hidden = _layer(layer, hidden, hidden, seen)
    first = _layer(last, hidden[:, :1], hidden, seen)
    return model.classifier(model.bert.pooler(first))[:, 0]


def _layer(layer, asking, hidden, seen):
    """Returns the output of one layer for the tokens `asking` [n_pairs, n, width], which see those of `hidden`."""
    own = layer.attention.self
    query, key, value = own.query(asking), own.key(hidden), own.value(hidden)
    heads = [
        x.view(*x.shape[:2], own.num_attention_heads, own.attention_head_size).transpose(1, 2)
        for x in (query, key, value)
    ]
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=seen).transpose(1, 2).flatten(2)
    mixed = layer.attention.output(mixed, asking)
    return layer.output(layer.intermediate(mixed), mixed)
