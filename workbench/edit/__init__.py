"""Edits: closed-form changes of weights, as low-rank data that can be previewed, committed, undone, saved and exported."""

from workbench.edit.cases import EditCase, case_table, read_cases, score_cases
from workbench.edit.closed_form import Solution, solve
from workbench.edit.editors import diff_quickfix, from_concepts, locoedit, moments_of, rome, swap, time_edit, uce
from workbench.edit.embeddings import embedding_swap, textual_inversion
from workbench.edit.erasing import erase
from workbench.edit.looks import KeyRuns
from workbench.edit.low_rank import Edit, Update, update_of
from workbench.edit.moments import Moments
from workbench.edit.neurons import neurons
from workbench.edit.projections import oblique, reflect
from workbench.edit.speed import speed

__all__ = [
    "Edit",
    "EditCase",
    "KeyRuns",
    "Moments",
    "Solution",
    "Update",
    "case_table",
    "diff_quickfix",
    "embedding_swap",
    "erase",
    "from_concepts",
    "locoedit",
    "moments_of",
    "neurons",
    "oblique",
    "read_cases",
    "reflect",
    "rome",
    "score_cases",
    "solve",
    "speed",
    "swap",
    "textual_inversion",
    "time_edit",
    "uce",
    "update_of",
]
