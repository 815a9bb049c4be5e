"""`raymtl cluster check`: what is wrong with a cluster file, found without asking any cloud."""

from pathlib import Path

from raymtl.cluster.files import kuberay, ray_up
from raymtl.cluster.files.documents import placeholders, read


def check_text(text: str, path: Path, folder: Path) -> list[str]:
    """A sentence for each thing that is wrong with a file for `ray up` or for KubeRay; none where
    nothing was found.

    `folder` is where `ray up` would be started, which sources of mounts are relative to. A file for
    `ray up` is validated by Ray's own schema too. Raises UserError for what is no YAML.
    """
    documents = read(text, path)
    unfilled = [sentence for document in documents for sentence in placeholders(document)]
    try:
        if any("apiVersion" in document for document in documents):
            problems = list(kuberay.find_problems(documents))
        else:
            problems = list(ray_up.find_problems(documents, folder))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Neither Ray's schema nor ours says what every part of a machine or a pod is made of.
        problems = [
            f"expected parts such as the shipped files have, got one of another type ({error}). "
            "Compare them."
        ]
    return [f"{path}: {sentence}" for sentence in (*unfilled, *problems)]
