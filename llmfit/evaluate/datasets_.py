"""Where evaluation data come from: a file, a folder of the datasets library, its caches, the hub.

    path ─► JSON lines or text ───────────────────────────────┐
        └─► folder: save_to_disk, or parquet, JSON, CSV, text ┴─► questions, documents
    dataset id ─► folder of that name here ─► hub ─► prepared cache ─► downloaded files

The last step is ours: while offline, the datasets library looks for what it has prepared itself
(``HF_DATASETS_CACHE``), not for what the hub client has downloaded (``HF_HUB_CACHE``).
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llmfit.errors import EvaluationError, TaskUnavailable
from llmfit.texts import read_text

HELLASWAG_KEYS = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
HELLASWAG_DATASET = "Rowan/hellaswag"
"""Dataset of lm-eval's ``hellaswag``."""
WIKITEXT_DATASET = "EleutherAI/wikitext_document_level"
"""Dataset of lm-eval's ``wikitext``."""
WIKITEXT_CONFIG = "wikitext-2-raw-v1"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SEPARATOR = re.compile(r"^<\|endoftext\|>\s*$", re.MULTILINE)
_FOLDER_HINT = "a folder made by save_to_disk, or one with parquet, JSON lines, CSV or text files"


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """HellaSwag questions, with the keys of ``HELLASWAG_KEYS``, and what to know about them."""

    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """The documents of a text."""

    documents: tuple[str, ...]
    """What is scored."""
    originals: tuple[str, ...]
    """What words and bytes are counted in; differs from ``documents`` for WikiText alone."""
    notes: tuple[str, ...] = ()


# ---------------------------------------------------------------- questions and documents


def load_questions(path: Path | None) -> Questions:
    """HellaSwag from a JSON-lines file or a dataset folder; None: from caches or the hub.

    A dataset's ``validation`` split is taken, as lm-eval does, or its only one. Raises
    EvaluationError naming a damaged line or row, and TaskUnavailable where nothing is found.
    """
    if path is not None and not path.is_dir():
        return Questions(rows=tuple(read_hellaswag(path)))
    if path is None:
        where, splits = HELLASWAG_DATASET, load_hub_dataset(HELLASWAG_DATASET)
    else:
        where, splits = str(path), load_folder(path)
    found, notes = _pick_split(splits, ("validation",), where)
    rows = tuple(_checked(row, f"{where}, row {number}") for number, row in enumerate(found))
    return Questions(rows=rows, notes=notes)


def load_text(path: Path | None) -> Text:
    """A text from a file or a dataset folder; None: WikiText-2 from caches or the hub.

    A dataset's ``test`` split is taken, as lm-eval does for WikiText, else ``validation``, else
    the only one. A column ``page`` is taken for WikiText by documents and detokenised as lm-eval
    does; a column ``text``, or the only one of texts, is scored as it stands. Raises
    EvaluationError for what holds no text, and TaskUnavailable where nothing is found.
    """
    if path is not None and not path.is_dir():
        documents = tuple(read_documents(path))
        return Text(documents=documents, originals=documents)
    if path is None:
        where, splits = WIKITEXT_DATASET, load_hub_dataset(WIKITEXT_DATASET, WIKITEXT_CONFIG)
    else:
        where, splits = str(path), load_folder(path, config=WIKITEXT_CONFIG)
    rows, notes = _pick_split(splits, ("test", "validation"), where)
    return _text(rows, where, notes)


def _text(rows: Any, where: str, notes: tuple[str, ...]) -> Text:
    texts = [name for name, kind in rows.features.items() if getattr(kind, "dtype", "") == "string"]
    named = [name for name in ("page", "text") if name in texts]
    if not named and len(texts) != 1:
        raise EvaluationError(
            f"{where} has no column of texts among {', '.join(rows.column_names)}.",
            hint="a dataset with a column `text`",
        )
    column = named[0] if named else texts[0]
    originals = [value for value in rows[column] if value is not None]
    if column == "text" and _are_lines(originals):
        originals = ["".join(value or "\n" for value in originals)]
    originals = [value for value in originals if value.strip()]
    if not originals:
        raise EvaluationError(f"{where} holds no text.")
    documents = _detokenised(originals) if column == "page" else originals
    return Text(documents=tuple(documents), originals=tuple(originals), notes=notes)


def _are_lines(values: Sequence[str]) -> bool:
    """True for rows that are the lines of one text, as in WikiText's dataset by lines."""
    return len(values) > 1 and all(value.endswith("\n") for value in values if value)


def _detokenised(pages: Sequence[str]) -> list[str]:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return [wikitext_detokenizer({"page": page}) for page in pages]


def read_hellaswag(path: Path) -> list[dict[str, Any]]:
    """The questions of a HellaSwag JSON-lines file. Raises EvaluationError naming the line."""
    docs = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                docs.append(_checked(json.loads(line), where))
            except json.JSONDecodeError as exc:
                raise EvaluationError(f"{where} is not JSON: {exc}.") from exc
    if not docs:
        raise EvaluationError(f"{path} holds no question.", hint="a HellaSwag JSON-lines file")
    return docs


def _checked(doc: Any, where: str) -> dict[str, Any]:
    """A question with the keys that matter. Raises EvaluationError naming ``where``."""
    missing = [key for key in HELLASWAG_KEYS if not isinstance(doc, dict) or key not in doc]
    if missing:
        raise EvaluationError(f"{where} has no {', '.join(missing)}.")
    endings, label = doc["endings"], str(doc["label"])
    if not isinstance(endings, list) or len(endings) < 2:
        raise EvaluationError(f"{where}: endings must be a list of at least two texts.")
    if not label.isdigit() or int(label) >= len(endings):
        raise EvaluationError(f"{where}: label {doc['label']!r} names none of the endings.")
    return {key: doc[key] for key in HELLASWAG_KEYS} | {"label": label}


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, parted by lines of ``<|endoftext|>`` and stripped.

    A file without such a line is one document, as it stands but for one line break at its end:
    so does llama.cpp read a text. Raises EvaluationError where there are none.
    """
    text = _read(path)
    parts = _SEPARATOR.split(text)
    documents = [part.strip() for part in parts] if len(parts) > 1 else [text.removesuffix("\n")]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise EvaluationError(f"{path} holds no text.", hint="a UTF-8 text file")
    return documents


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except OSError as exc:
        raise EvaluationError(f"cannot read {path}: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise EvaluationError(f"{path} is not UTF-8 text: {exc.reason}.") from exc


# ---------------------------------------------------------------- datasets


def load_folder(folder: Path, *, config: str | None = None) -> Any:
    """The splits of a dataset folder, or its single dataset, in the datasets library's types.

    ``config`` is taken where the folder has several. Raises EvaluationError.
    """
    import datasets

    try:
        if _saved_to_disk(folder):
            return datasets.load_from_disk(str(folder))
        names = datasets.get_dataset_config_names(str(folder))
        name = config if config in names else None
        loaded = datasets.load_dataset(str(folder), name)
        if next(iter(loaded.values())).info.builder_name == "text":  # a row a line, otherwise
            loaded = datasets.load_dataset(str(folder), name, sample_by="document")
        return loaded
    except _library_errors() as exc:
        raise EvaluationError(
            f"{folder} could not be loaded as a dataset ({_described(exc)}).", hint=_FOLDER_HINT
        ) from exc


def load_hub_dataset(path: str, name: str | None = None) -> Any:
    """The splits of a dataset by its hub id, from the nearest place that has it.

    Raises TaskUnavailable naming the places that were looked at, or what is wrong with the data.
    """
    import datasets

    try:
        return _load(datasets.load_dataset, path, name)
    except _library_errors() as exc:
        # The library writes locks and prepared copies even where it only reads.
        locked = isinstance(exc, OSError) and exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        raise TaskUnavailable(
            f"dataset {path} could not be loaded ({_described(exc)}).",
            hint="HF_DATASETS_CACHE=FOLDER that can be written"
            if locked
            else f"HF_HOME=FOLDER of a machine that has {path}",
        ) from exc


@contextmanager
def local_datasets() -> Iterator[None]:
    """Let lm-eval's tasks find datasets wherever ``load_hub_dataset`` does.

    Tasks call ``datasets.load_dataset``, so it is replaced while the context is open.
    """
    import datasets

    original = datasets.load_dataset
    datasets.load_dataset = partial(_load, original)
    try:
        yield
    finally:
        datasets.load_dataset = original


def _load(original: Callable[..., Any], path: str, name: str | None = None, **options: Any) -> Any:
    """``datasets.load_dataset`` that also reads save_to_disk folders and downloaded files."""
    import datasets

    if _saved_to_disk(Path(path)):
        saved = datasets.load_from_disk(path)
        split = options.get("split")
        return saved if split is None else saved[split]
    try:
        return original(path, name, **options)
    except (ConnectionError, FileNotFoundError, ValueError) as exc:
        if not _may_be_on_hub(path, options):
            raise
        snapshot = _snapshot(path)
        if snapshot is not None:
            options.pop("revision", None)
            return _load_snapshot(original, snapshot, name, options)
        if isinstance(exc, ValueError):
            raise  # found, but not in the form asked for: the library's message says why
        raise _not_found(path, exc) from exc


def _may_be_on_hub(path: str, options: Mapping[str, Any]) -> bool:
    """False for a file's path and for a reader of files, such as ``json`` with ``data_files``."""
    reader = "/" not in path and bool({"data_files", "data_dir"} & options.keys())
    return _HUB_ID.fullmatch(path) is not None and not reader


def _load_snapshot(
    original: Callable[..., Any], snapshot: Path, name: str | None, options: dict[str, Any]
) -> Any:
    try:
        return original(str(snapshot), name, **options)
    except ValueError:
        # Without its README the snapshot does not say which of its folders a config is.
        if name is None or not (snapshot / name).is_dir():
            raise
        return original(str(snapshot / name), **options)


def _snapshot(path: str) -> Path | None:
    """Folder of what the hub client has downloaded of a dataset; None for nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _not_found(path: str, exc: Exception) -> TaskUnavailable:
    import datasets
    from huggingface_hub import constants

    prepared = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / path.replace("/", "___")
    downloaded = Path(constants.HF_HUB_CACHE) / f"datasets--{path.replace('/', '--')}"
    if isinstance(exc, datasets.exceptions.DatasetNotFoundError):
        hub = f"the hub does not give it ({_described(exc)})"
    else:
        hub = "the hub was not reached"
    return TaskUnavailable(
        f"dataset {path} was not found: {hub}, and there is neither {prepared.resolve()} nor "
        f"{downloaded.resolve()} nor a folder {path} in {Path.cwd()}.",
        hint=f"HF_HOME=FOLDER of a machine that has {path}",
    )


def _saved_to_disk(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _pick_split(splits: Any, preferred: Sequence[str], where: str) -> tuple[Any, tuple[str, ...]]:
    """The first of the ``preferred`` splits, or the only one, with a note when it is not first."""
    if not isinstance(splits, Mapping):
        return splits, ()
    if not splits:
        raise EvaluationError(f"{where} has no split.")
    named = [name for name in preferred if name in splits] or list(splits)
    chosen = named[0]
    if chosen not in preferred and len(splits) > 1:
        raise EvaluationError(
            f"{where} has the splits {', '.join(splits)}; one of {', '.join(preferred)} is needed."
        )
    if chosen == preferred[0]:
        return splits[chosen], ()
    return splits[chosen], (f"{where}: split {chosen} is scored, there is no {preferred[0]}",)


def _library_errors() -> tuple[type[Exception], ...]:
    """What the datasets library raises for data that are not what they should be."""
    from datasets.exceptions import DatasetsError

    return (OSError, ValueError, TypeError, KeyError, DatasetsError)


def _described(exc: BaseException) -> str:
    """Type and first line of an error; of its cause where the library only wraps that."""
    import datasets

    if isinstance(exc, datasets.exceptions.DatasetGenerationError) and exc.__cause__ is not None:
        exc = exc.__cause__
    return f"{type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}"
