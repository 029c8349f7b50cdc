"""Fine-tune with the recipe that the notebooks measured, next to a free rotation as a control.

python train_recipe.py MODEL TRIPLETS.parquet OUTPUT_FOLDER

TRIPLETS.parquet has the columns `query`, `positive` and, if you have them, `negative`, `negative_2`
and so on: texts, a row for each query. A tenth of the positives, at most 1,000, is held out with
its queries. We train twice: with a Matryoshka loss from a rotated start (tuned), and with the plain
loss, rotated afterwards (the control). OUTPUT_FOLDER gets the tuned model, in the layout that
servers read: SentenceTransformer(OUTPUT_FOLDER, truncate_dim=64), and normalise.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses, modules
from sentence_transformers.sentence_transformer.training_args import (
    BatchSamplers,
    SentenceTransformerTrainingArguments,
)
from torch.nn.functional import normalize

POOLING = {"cls": "cls_token", "mean": "mean_tokens"}  # the kinds that servers know


def load(args) -> SentenceTransformer:
    """Load the model in float32, without dropout: that saves a third of a step on a CPU."""
    device, options = "cuda", {"dtype": "float32"}
    if not torch.cuda.is_available():
        device, options = "cpu", options | {"attn_implementation": "eager"}  # trains faster there
    model = SentenceTransformer(args.model, device=device, model_kwargs=options)
    model.max_seq_length, model.truncate_dim = args.max_seq_length, None
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def dims_of(full: int) -> list[int]:
    """Return the prefixes that are trained: full size, and the usual ones below it."""
    return [full, *(dim for dim in (512, 256, 128, 64, 32) if dim < full)]


def fit_rotation(passages: torch.Tensor) -> torch.Tensor:
    """Return the rotation that puts the directions of most variance first: uncentred PCA."""
    products = passages.T.double() @ passages.double()
    return torch.linalg.eigh(products)[1].flip(1).float()


def rotate(model: SentenceTransformer, rotation: torch.Tensor) -> SentenceTransformer:
    """Add a rotation, ``(dim, dim)``, as a layer before the model normalises, in place."""
    weight = rotation.T.contiguous()
    layer = modules.Dense(*weight.shape, bias=False, activation_function=None, init_weight=weight)
    model.insert(len(model) - isinstance(model[-1], modules.Normalize), layer.to(model.device))
    return model


def fine_tune(model: SentenceTransformer, rows: Dataset, dims: list[int], args) -> None:
    """Train a model in place, in one pass. With full size alone, that's the plain loss."""
    kinds = {column: "query" if column == "query" else "document" for column in rows.column_names}
    prompts = {column: text for column, kind in kinds.items() if (text := model.prompts.get(kind))}
    loss = losses.MultipleNegativesRankingLoss(model, scale=20.0)
    scratch = tempfile.TemporaryDirectory()  # the trainer wants one, but nothing is saved in it
    arguments = SentenceTransformerTrainingArguments(
        output_dir=scratch.name,
        num_train_epochs=1,
        per_device_train_batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        warmup_steps=0.1,  # a share of all steps
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        prompts=prompts or None,
        seed=0,
        bf16=args.bf16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
    )
    loss = losses.MatryoshkaLoss(model, loss, matryoshka_dims=dims)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss).train()
    scratch.cleanup()


def save(model: SentenceTransformer, folder: Path) -> None:
    """Save a model in the layout that servers and sentence-transformers 2 to 6 read.

    One with other layers than the usual is left as the library saves it.
    """
    model.save(str(folder))
    kinds = [type(module).__name__ for module in model]
    usual = ["Transformer", "Pooling", "Dense", "Normalize"]
    if kinds not in (usual, usual[:3]) or model[1].pooling_mode not in POOLING:
        return print("Layers that servers may not know: compare their vectors with the model's")
    listed, contents = json.loads((folder / "modules.json").read_text()), {}
    for entry, kind, module in zip(listed, kinds, model, strict=True):
        entry["type"] = f"sentence_transformers.models.{kind}"
        path = folder / entry["path"]
        if kind == "Transformer":
            config = {
                "max_seq_length": module.max_seq_length,
                "do_lower_case": module.do_lower_case,
            }
            contents[path / "sentence_bert_config.json"] = config
        elif kind == "Pooling":
            config = {
                f"pooling_mode_{name}": k == module.pooling_mode for k, name in POOLING.items()
            }
            config |= {"word_embedding_dimension": module.embedding_dimension}
            contents[path / "config.json"] = config | {"include_prompt": module.include_prompt}
        elif kind == "Dense":
            config = module.get_config_dict()
            contents[path / "config.json"] = {k: config[k] for k in config if "module_" not in k}
        else:
            (path / "config.json").unlink()  # Normalize has no settings there
    for file, content in (contents | {folder / "modules.json": listed}).items():
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_rows(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read rows to train on, and held-out ones that share no query and no positive with them."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        sys.exit(f"expected a .parquet file of triplets, got {path}: {str(error).splitlines()[0]}")
    if missing := {"query", "positive"} - {*table}:
        sys.exit(f"expected a column `{max(missing)}` in {path}, got {', '.join(map(str, table))}")
    table = table[["query", "positive", *table.filter(regex="^negative")]].dropna()
    texts = table["positive"].drop_duplicates()
    held_out = table["positive"].isin(texts.sample(min(1000, len(texts) // 10), random_state=0))
    known = table["query"].isin(table["query"][held_out])
    return table[~held_out & ~known], table[held_out]


def mrr(queries: torch.Tensor, passages: torch.Tensor, right: list[int], dim: int) -> float:
    """Return MRR@10 with prefixes of ``dim``; ``right`` has the row of each query's passage."""
    scores = normalize(queries[:, :dim]) @ normalize(passages[:, :dim]).T
    rank = (scores >= scores[range(len(right)), right][:, None]).sum(dim=1)
    return (1 / rank).where(rank <= 10, 0).mean().item()


def parse_arguments() -> argparse.Namespace:
    """Read the command line. The defaults are the recipe."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("model", metavar="MODEL", help="a folder, or an id on the Hub")
    parser.add_argument("triplets", metavar="TRIPLETS.parquet", type=Path)
    parser.add_argument("output", metavar="OUTPUT_FOLDER", type=Path)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="lower for larger models")
    parser.add_argument("--max-seq-length", type=int, default=64, help="tokens, then texts are cut")
    parser.add_argument("--bf16", action="store_true", help="where it's fast: newer GPUs and CPUs")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    train, held_out = read_rows(args.triplets)
    if min(len(train), 10 * len(held_out)) < args.batch_size:
        sys.exit(f"expected rows for some batches of {args.batch_size}, got {len(train)}")
    try:
        base = load(args)
    except (OSError, ValueError) as error:
        sys.exit(f"can't load the model {args.model}: {str(error).splitlines()[0]}")

    rows = Dataset.from_pandas(train, preserve_index=False)
    passages = pd.concat([train["positive"], held_out["positive"]]).unique().tolist()
    of_training = train["positive"].nunique()  # they come first
    right = [passages.index(text) for text in held_out["positive"]]
    full = base.get_embedding_dimension()

    def embed(model: SentenceTransformer) -> tuple[torch.Tensor, torch.Tensor]:
        found = model.encode_query(held_out["query"].tolist(), convert_to_tensor=True)
        return found.cpu(), model.encode_document(passages, convert_to_tensor=True).cpu()

    def show(name: str, queries: torch.Tensor, passages: torch.Tensor) -> None:
        found = (f"{mrr(queries, passages, right, d):.3f} at {d}" for d in (min(64, full), full))
        print(f"{name:<15} MRR@10 {'   '.join(found)}", flush=True)

    print(f"{len(rows):,} rows to train on; {len(right):,} queries search {len(passages):,} texts")
    queries, vectors = embed(base)
    show("base", queries, vectors)
    tuned = rotate(base, fit_rotation(vectors[:of_training]))
    fine_tune(tuned, rows, dims_of(full), args)
    save(tuned, args.output)
    show("tuned", *embed(tuned))
    control = load(args)
    fine_tune(control, rows, [full], args)
    queries, vectors = embed(control)
    rotation = fit_rotation(vectors[:of_training])
    show("plain, rotated", queries @ rotation, vectors @ rotation)


if __name__ == "__main__":
    main()
