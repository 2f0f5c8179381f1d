"""The validation that follows a checkpoint, for a run that was stopped between the two."""

from lightning import Trainer


def run_due_validation(trainer: Trainer) -> None:
    """Validates where a run goes on from a checkpoint at a step of a validation; call it when training starts.

    A checkpoint is written before the validation of its step. Lightning takes that validation for done, so that a run
    that ended in between would never have it, and callbacks with a state would have seen one validation less.
    """
    batches = trainer.global_step * trainer.accumulate_grad_batches
    if batches == 0 or not trainer.enable_validation or batches % trainer.val_check_batch:
        return
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
