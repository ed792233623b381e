"""A cross-entropy with one mean over all processes, and how losses of mmseg are called."""

import inspect

import torch
from mmengine.dist import all_reduce
from mmseg.models.losses import CrossEntropyLoss, FocalLoss
from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional


def apply_loss(loss: nn.Module, logits: Tensor, label: Tensor, weight: Tensor | None, ignored: int) -> Tensor:
    """A loss of mmseg or of this package, computed from the arguments that its ``forward`` takes.

    Takes logits (N, C, H, W), class ids int64 (N, H, W), one of them ignored, and pixel weights (N, H, W).
    """
    if isinstance(loss, FocalLoss):
        # Its own forward fails with class ids on a CPU, and on a GPU needs an operator that mmcv-lite lacks.
        channels, valid = logits.shape[1], label != ignored
        one_hot = functional.one_hot(label.where(valid, 0), max(channels, 2))[..., -channels:]
        settings = {name: getattr(loss, name) for name in ('gamma', 'alpha', 'class_weight', 'reduction')}
        weight = None if weight is None else weight.flatten()
        rows = logits.movedim(1, -1).reshape(-1, channels)
        value = py_sigmoid_focal_loss(
            rows, one_hot.flatten(0, -2), None, weight, valid_mask=valid.view(-1, 1), **settings
        )
        return loss.loss_weight * value
    taken, options = inspect.signature(loss.forward).parameters, dict(weight=weight, ignore_index=ignored)
    options = {name: value for name, value in options.items() if name in taken or 'kwargs' in taken}
    return loss(logits, label, **options)


@MODELS.register_module()
class LyftCrossEntropyLoss(CrossEntropyLoss):
    """Mean cross-entropy over the valid pixels of the whole batch, weighted by class.

    mmseg's loss divides by the pixels of one process; averaging the gradients over processes then weighs a
    frame with few valid pixels as much as a full one. This one divides by the weight of all processes'
    valid pixels, so a batch gives the same gradient however it is split. If only deterministic algorithms
    are allowed, maps are flattened to rows: CUDA has a deterministic cross-entropy for rows alone.

    Args:
        kwargs: As in mmseg's ``CrossEntropyLoss``; ``avg_non_ignore`` makes no difference.
    """

    def __init__(self, *args, **kwargs) -> None:
        # mmseg prints a warning about its own default.
        super().__init__(*args, **dict(avg_non_ignore=True) | kwargs)

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
        ignore_index: int = 255,
        **kwargs,
    ) -> Tensor:
        """The loss, a scalar; float (N, H, W) without reduction. Arguments as in mmseg.

        Takes logits (N, C, H, W), class ids int64 (N, H, W) or (N, 1, H, W), and pixel weights (N, H, W).
        """
        if label.dim() == 4 and label.shape[1] == 1:
            label = label.squeeze(1)
        reduction = reduction_override or self.reduction
        if reduction == 'mean' and avg_factor is None:
            avg_factor = self._valid_weight(cls_score, label, ignore_index)
        if reduction != 'none' and not self.use_sigmoid and torch.are_deterministic_algorithms_enabled():
            cls_score = cls_score.movedim(1, -1).reshape(-1, cls_score.shape[1])
            label = label.reshape(-1)
            weight = None if weight is None else weight.reshape(-1)
        return super().forward(
            cls_score, label, weight, avg_factor, reduction_override, ignore_index=ignore_index, **kwargs
        )

    def _valid_weight(self, cls_score: Tensor, label: Tensor, ignore_index: int) -> Tensor:
        """Summed weight of the valid pixels of this batch; in training, its mean over the processes."""
        valid = label != ignore_index
        if self.class_weight is None or self.use_sigmoid:
            # With several sigmoids, a pixel counts once per channel.
            channels = cls_score.shape[1] if self.use_sigmoid else 1
            total = valid.sum(dtype=torch.float32) * channels
        else:
            total = cls_score.new_tensor(self.class_weight, dtype=torch.float32)[label[valid]].sum()
        if self.training:
            # In validation the processes may have unequal numbers of frames and would wait forever.
            all_reduce(total, op='mean')
        return total
