"""Search a file of passages: a shortlist from 64 dimensions, ranked again by all of them.

python search.py MODEL PASSAGES [QUERY ...] [--dim 64]

MODEL is a folder or an id on the Hub. PASSAGES is a .txt file with one passage per line, or a
.parquet file with a column `text`. Without a QUERY, reads queries from stdin, one per line.
With --dim the model encodes to its first dimensions only, and nothing else is stored or searched.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")  # macOS: torch and FAISS bring an OpenMP each
import faiss
import numpy as np
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer

SMALL, SHORTLIST, TOP = 64, 100, 5
if sys.platform == "darwin":
    faiss.omp_set_num_threads(1)  # more of them crash there next to torch's


def read_passages(path: Path) -> list[str]:
    """Read the passages of a .txt or .parquet file, without empty ones."""
    if not path.is_file() or path.suffix not in (".txt", ".parquet"):
        sys.exit(f"expected a .txt or .parquet file of passages, got {path}")
    if path.suffix == ".txt":
        texts = path.read_text(encoding="utf-8").split("\n")
    elif "text" in (names := pq.read_schema(path).names):
        texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    else:
        sys.exit(f"expected a column `text` in {path}, got {', '.join(names)}")
    passages = [text for text in texts if text and text.strip()]
    return passages or sys.exit(f"expected passages in {path}, got none")


def prefix(embeddings: np.ndarray, dim: int) -> np.ndarray:
    """Cut embeddings to their first ``dim`` dimensions, and renormalise them."""
    small = embeddings[:, :dim].copy()
    faiss.normalize_L2(small)
    return small


parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("model")
parser.add_argument("passages", type=Path)
parser.add_argument("queries", nargs="*", default=[])
parser.add_argument("--dim", type=int, help="dimensions to encode to (default: all)")
args = parser.parse_args()

passages = read_passages(args.passages)
try:
    model = SentenceTransformer(args.model, model_kwargs={"dtype": "float32"})
except (OSError, ValueError) as error:
    sys.exit(f"can't load the model {args.model}: {str(error).splitlines()[0]}")
full = model.get_embedding_dimension()
if args.dim is not None and not 1 <= args.dim <= full:
    sys.exit(f"expected --dim from 1 to {full}, got {args.dim}")
model.truncate_dim = args.dim or model.truncate_dim
stored = model.encode_document(passages, normalize_embeddings=True)  # (num_passages, dim)
dim = args.dim or min(SMALL, stored.shape[1])
small = prefix(stored, dim)
int8 = faiss.ScalarQuantizer.QT_8bit  # a byte per dimension
index = faiss.IndexScalarQuantizer(small.shape[1], int8, faiss.METRIC_INNER_PRODUCT)
index.train(small)
index.add(small)

for query in map(str.strip, args.queries or sys.stdin):
    if not query:
        continue
    embedding = model.encode_query([query], normalize_embeddings=True)  # (1, dim)
    _, rows = index.search(prefix(embedding, dim), min(SHORTLIST, len(passages)))
    shortlist = rows[0]
    scores = stored[shortlist] @ embedding[0]
    print(query)
    for best in scores.argsort()[::-1][:TOP]:
        print(f"  {scores[best]:.3f}  {passages[shortlist[best]]}", flush=True)
