"""What can go wrong with a launch, before it is accepted and on its way."""

from backend.kit.errors import Conflict, DomainError


class NoContentsChosen(DomainError):
    code = "NO_CONTENTS_CHOSEN"
    template = (
        "The launch names no content, and no project of which all could be taken. Add documents with "
        "POST /api/contents/upload, and name them in content_ids."
    )


class ContentsOfSeveralProjects(DomainError):
    code = "CONTENTS_OF_SEVERAL_PROJECTS"
    template = "The contents belong to several projects: {project_ids}. Name those of one project."

    def __init__(self, *, project_ids: list[int]) -> None:
        super().__init__(project_ids=", ".join(str(number) for number in project_ids))
        self.context["project_ids"] = project_ids


class ContentLengthUnknown(Conflict):
    code = "CONTENT_LENGTH_UNKNOWN"
    template = (
        "This launch has to be paid, and nobody knows yet how long these contents are: {content_ids}. Wait until their "
        "status is 'processed', or launch without them; nothing was charged."
    )


class OrderEnded(Conflict):
    code = "ORDER_ENDED"
    template = "The order is over ({state}); there is nothing to cancel."


class OrderBeingPaid(Conflict):
    code = "ORDER_BEING_PAID"
    template = (
        "Stripe has closed this order's payment page, most likely because it was just paid. Look at the order again "
        "in a moment, and cancel it then."
    )


class OrderCancelled(DomainError):
    """Why an order ended."""

    code = "ORDER_CANCELLED"
    template = "The order was cancelled. What was not used is on your balance; a dataset that was ready is kept."


class CheckoutTimedOut(DomainError):
    code = "CHECKOUT_TIMED_OUT"
    template = "The order was not paid within a day, so nothing was started. Order again to get another payment page."


class LaunchLostProject(DomainError):
    code = "LAUNCH_LOST_PROJECT"
    template = "The project or dataset of this launch was deleted. Launch again in another project."


class LaunchLostContents(DomainError):
    code = "LAUNCH_LOST_CONTENTS"
    template = "Contents of this launch were deleted: {content_ids}. Launch again with those that are there."

    def __init__(self, *, content_ids: list[int]) -> None:
        super().__init__(content_ids=", ".join(str(number) for number in content_ids))
        self.context["content_ids"] = content_ids


class LaunchWaitedTooLong(DomainError):
    code = "LAUNCH_WAITED_TOO_LONG"
    template = (
        "The contents of this launch could not be read within {hours} hours. Launch again once their status is "
        "'processed'."
    )


class LaunchRunCancelled(DomainError):
    code = "LAUNCH_RUN_CANCELLED"
    template = (
        "The fine-tuning of this launch was cancelled or deleted. Where its dataset is ready, another fine-tuning on "
        "it (POST /api/fine-tunings) costs no characters."
    )


class LaunchRunFailed(DomainError):
    code = "LAUNCH_RUN_FAILED"
    template = (
        "The dataset of this launch is ready, and its fine-tuning failed: {reason} Another fine-tuning on the dataset "
        "(POST /api/fine-tunings) costs no characters."
    )


class LaunchDatasetFailed(DomainError):
    """The job that made the dataset failed; where it has a code and a sentence, they are its own."""

    code = "LAUNCH_DATASET_FAILED"
    template = "The dataset of this launch could not be made, and nothing was charged for it. Launch again."


class LaunchBroken(DomainError):
    code = "LAUNCH_BROKEN"
    template = "The launch failed by an error of the service. Launch again, and tell its operator if it fails again."
