"""Fine-tune a sentence embedding model on a file of triplets."""

import argparse
import os
import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import (
    BatchSamplers,
    SentenceTransformerTrainingArguments,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", help="a folder, or an id on the Hub")
parser.add_argument("triplets", help="a .parquet file: query, positive, perhaps negatives")
parser.add_argument("output", help="a folder for the trained model")
args = parser.parse_args()
if not os.path.isfile(args.triplets):
    sys.exit(f"expected a .parquet file of triplets, got {args.triplets}")
try:
    model = SentenceTransformer(args.model, model_kwargs={"dtype": "float32"})
except (OSError, ValueError) as error:
    sys.exit(f"can't load the model {args.model}: {str(error).splitlines()[0]}")
rows = Dataset.from_parquet(args.triplets)
kinds = {name: "query" if name == "query" else "document" for name in rows.column_names}
prompts = {name: text for name, kind in kinds.items() if (text := model.prompts.get(kind))}
loss = losses.MultipleNegativesRankingLoss(model)
full_dim = model.get_embedding_dimension()
dims = [full_dim, *(dim for dim in (256, 128, 64, 32) if dim < full_dim)]
loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=dims)
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=f"{args.output}-checkpoints",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=5e-5,
        warmup_steps=0.1,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        prompts=prompts or None,
        report_to="none",
    ),
    train_dataset=rows,
    loss=loss,
)
trainer.train()
model.save(args.output)
