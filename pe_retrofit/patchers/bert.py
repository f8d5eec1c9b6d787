"""BERT and its relatives: a position table in the embeddings, no rotation; encoders, or decoders by ``is_decoder``."""

from .descriptor import Family

BERT = Family(
    name="bert",
    layers="encoder.layer",
    attention="attention.self",
    table="embeddings.position_embeddings",
    examples="BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, MiniLM",
)

DISTILBERT = Family(
    name="bert",
    layers="transformer.layer",
    attention="attention",
    table="embeddings.position_embeddings",
    examples="DistilBERT",
)
