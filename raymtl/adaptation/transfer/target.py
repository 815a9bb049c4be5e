"""Target transfer: distillation (Hinton et al., 2015, arXiv:1503.02531), hints (Romero et al.,
2014, arXiv:1412.6550).

(1 - a) CE + a T^2 KL(softmax(t / T) | softmax(s / T)); for numbers (1 - a) L + a (t - s)^2; by
features (1 - a) L + a |R f_s - f_t|^2 / (D var f_t).
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from raymtl.adaptation.transfer.base import Learned, Transfer
from raymtl.adaptation.transfer.network import Network, Teacher, Trunk, headed
from raymtl.adaptation.transfer.task import Examples
from raymtl.encoders import EncoderSpec
from raymtl.sharing import HardSpec
from raymtl.types import Task, UserError


class TargetTransfer(Transfer):
    """Trains another encoder on the new examples and on what the trained model makes of them.

    `match: predictions` is distillation, for a task that the teacher has too: with classes the soft
    targets at `temperature`, with numbers the squared error to the teacher's, in standard
    deviations. `match: features` is for another output space: the student's features, through a
    linear map R that is thrown away afterwards, are drawn to the teacher's, the squared error being
    relative to their variance over the training examples. Deviation from FitNets: hint and task are
    learned together and not one after the other.
    """

    name: Literal["target"] = "target"
    helps: ClassVar[str] = "the model is to be another one: smaller, or of another kind"
    student: EncoderSpec | None = None
    match: Literal["predictions", "features"] = "predictions"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """a: how much the teacher counts against the labels."""
    temperature: PositiveFloat = 2.0
    adapt_teacher: bool = False
    """Whether the trained model is adapted to the training examples, as its learner does it, before
    it teaches.
    """

    def network(self, teacher: Teacher, task: Task) -> Network:
        if self.student is None:
            raise UserError(
                "student.name: expected the encoder that is to learn, such as mlp, got none. Name "
                "it."
            )
        if self.student.weights_source != "none":
            raise UserError(
                "student.weights: expected none, since a student starts at random values, got "
                f"{self.student.weights_source}. Leave it away."
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.optimiser.seed)
            try:
                encoder = self.student.build(teacher.encoder_shape)
            except UserError as error:
                raise UserError(f"student: {error}") from None
            sharing = HardSpec().build([task], [encoder])
            sharing.front = teacher.front
            body = Trunk(sharing, task.name)
        return headed(body, task, teacher.input_shape, self.optimiser.seed)

    def learned(self, teacher: Teacher, network: Network, task: Task, train: Examples) -> Learned:
        if self.match == "features":
            return self._by_features(teacher, network, task, train)
        taught = self.task.task_kind.as_prediction(task, self._told(teacher, task, train))

        def loss(read: Tensor, rows: Tensor) -> Tensor:
            predicted = network(read)
            own = task.loss(predicted, train.targets[rows])
            if task.kind.has_class_logits:
                apart = distillation(predicted, taught[rows], self.temperature)
            else:
                apart = (predicted - taught[rows]).square().flatten(1).sum(1)
            return (1 - self.alpha) * own + self.alpha * apart

        return Learned(network, lambda inputs: inputs, network, loss, {})

    def _by_features(
        self, teacher: Teacher, network: Network, task: Task, train: Examples
    ) -> Learned:
        with torch.no_grad():
            hints = teacher.body(train.inputs)
            width = network.body(train.inputs[:1]).shape[-1]
        spread = hints.var(0, correction=0).mean().clamp(min=torch.finfo(hints.dtype).tiny)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.optimiser.seed)
            onto = nn.Linear(width, hints.shape[-1]).to(hints)

        def loss(read: Tensor, rows: Tensor) -> Tensor:
            features = network.body(read)
            own = task.loss(network.head(features), train.targets[rows])
            apart = (onto(features) - hints[rows]).square().mean(1) / spread
            mixed: Tensor = (1 - self.alpha) * own + self.alpha * apart
            return mixed

        return Learned(nn.ModuleList([network, onto]), lambda inputs: inputs, network, loss, {})

    def _told(self, teacher: Teacher, task: Task, train: Examples) -> Tensor:
        """The teacher's predictions of the training examples."""
        if teacher.adapt and self.adapt_teacher:
            adapted = teacher.adapt(train)
        else:
            adapted = None
        if self.adapt_teacher:
            predict = adapted
        else:
            predict = teacher.predict
        if predict is None and (teacher.adapt or teacher.predict):
            raise UserError(
                f"adapt_teacher: expected {'true' if teacher.adapt else 'false'}, since the "
                f"trained model predicts only {'after' if teacher.adapt else 'before'} adapting, "
                f"got {str(self.adapt_teacher).lower()}."
            )
        if predict is None:
            raise UserError(
                f"match: predictions takes a trained model that has the task '{task.name}' too, "
                "got one without. Set match: features, or task.name to a task of the trained model."
            )
        with torch.no_grad():
            predicted = predict(train.inputs)
        if task.kind.has_class_logits and predicted.shape[-1] != task.out_features:
            raise UserError(
                "match: predictions takes as many classes as the trained model has, "
                f"{predicted.shape[-1]}, got task.num_classes: {task.out_features}. Set match: "
                "features, or the same number of classes."
            )
        return predicted


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) | softmax(student / T)) of logits [N, C], [N].

    Its gradient with respect to the student's logits is T (softmax(s / T) - softmax(t / T)), which
    for large T is that of 1/(2 C) |(s - mean s) - (t - mean t)|^2.
    """
    own, told = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return temperature**2 * (told.exp() * (told - own)).sum(-1)
