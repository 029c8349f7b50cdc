"""Fine-tune a sentence embedding model on a file of triplets.

python THIS_FILE MODEL TRIPLETS.parquet OUTPUT_FOLDER
"""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import (
    BatchSamplers,
    SentenceTransformerTrainingArguments,
)

if len(sys.argv) != 4:
    sys.exit(__doc__)
model_name, triplets, output = sys.argv[1:]
model = SentenceTransformer(model_name, model_kwargs={"dtype": "float32"})
loss = losses.MultipleNegativesRankingLoss(model)
full_dim = model.get_embedding_dimension()
dims = [full_dim, *(dim for dim in (256, 128, 64, 32) if dim < full_dim)]
loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=dims)
trainer = SentenceTransformerTrainer(
    model=model,
    args=SentenceTransformerTrainingArguments(
        output_dir=f"{output}-checkpoints",
        num_train_epochs=1,
        per_device_train_batch_size=64,
        learning_rate=5e-5,
        warmup_steps=0.1,
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        report_to="none",
    ),
    train_dataset=Dataset.from_parquet(triplets),
    loss=loss,
)
trainer.train()
model.save(output)
