"""Which of its scores a task is chosen by."""

from raymtl.types import Task, UserError


def chosen_by(task: Task, metric: str | None, key: str) -> Task:
    """The same task with `metric` as its first one, or as it is.

    Raises UserError, which names the dotted `key`, for a score that tasks of this kind do not have.
    """
    if metric is None:
        return task
    if metric not in task.metrics:
        raise UserError(
            f"{key}: expected one of {', '.join(task.metrics)}, which a task of kind {task.kind} "
            f"has, got '{metric}'."
        )
    others = {name: own for name, own in task.metrics.items() if name != metric}
    return task._replace(metrics={metric: task.metrics[metric], **others})
