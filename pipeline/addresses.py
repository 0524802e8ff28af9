"""Addresses of pages in Dagster and MLflow that open on what a person wants to see."""

from __future__ import annotations

import json
import socket
import urllib.request
from http.client import HTTPException
from urllib.parse import quote, urlsplit

from pipeline.graph import GROUPS

TRAINING_VIEW = "?workflowType=machine_learning"
"""Without it MLflow opens on its pages for language model applications, where there are no runs."""

_SECONDS = 5


def graph_url(dagster: str) -> str:
    """Dagster's graph of all assets with every group expanded.

    Args:
        dagster: Address of the webserver.
    """
    groups = [f"global@global:{group}" for group in GROUPS]
    return f"{dagster}/asset-groups?expanded={quote(','.join(groups), safe='')}"


def run_url(mlflow: str, experiment_id: str, run_id: str) -> str:
    """MLflow's page of a run."""
    return f"{mlflow}/#/experiments/{experiment_id}/runs/{run_id}{TRAINING_VIEW}"


def live_curve_url(mlflow_run: str) -> str:
    """MLflow's page of a run's curves, from the address of the run's page."""
    return mlflow_run.replace(TRAINING_VIEW, f"/model-metrics{TRAINING_VIEW}")


def is_served(address: str) -> bool:
    """Whether something listens at an address; it takes a third of a second at most."""
    parts = urlsplit(address)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=0.3):
            return True
    except OSError:
        return False


def experiment_url(mlflow: str, name: str) -> str:
    """MLflow's list of an experiment's runs, or its list of experiments while there is none of this name.

    Args:
        mlflow: Address of the MLflow server, which is asked for the experiment's id.
    """
    question = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}"
    try:
        with urllib.request.urlopen(question, timeout=_SECONDS) as answer:
            experiment = "/" + str(json.load(answer)["experiment"]["experiment_id"]) + "/runs"
    except (OSError, HTTPException, ValueError, KeyError):
        experiment = ""
    return f"{mlflow}/#/experiments{experiment}{TRAINING_VIEW}"
