"""Why a recording gave no text: each failure has its own code and a sentence that says what to do."""

from backend.kit.errors import DomainError


class AudioBroken(DomainError):
    code = "AUDIO_BROKEN"
    template = (
        "The recording cannot be read: it is damaged, has no sound track, or is not what its name says. Open it in a "
        "player, save it anew (as MP3, M4A, WAV or MP4) and upload that."
    )


class AudioHasNoSpeech(DomainError):
    code = "AUDIO_HAS_NO_SPEECH"
    template = "No speech was found in the recording. Check that it has sound, or upload its transcript as a text file."


class AudioTooLong(DomainError):
    code = "AUDIO_TOO_LONG"
    template = (
        "The recording is longer than {limit_minutes} minutes (TRANSCRIPTION_MAX_MINUTES). Split it and upload the "
        "parts."
    )


class ContentIdRequired(DomainError):
    code = "CONTENT_ID_REQUIRED"
    template = (
        "async_process needs the content_id of a content of the type youtube. Add the video with POST /api/contents "
        "first, and send its id."
    )


class ContentNotAVideo(DomainError):
    code = "CONTENT_NOT_A_VIDEO"
    template = (
        "The content {content_id} is not this video. Send the content_id that POST /api/contents gave for it, with "
        "the same address."
    )


class TranscriptionNotAvailable(DomainError):
    """What a job says on a worker without the engine; `extra` is the extra of the package that brings it."""

    status = 503
    code = "TRANSCRIPTION_NOT_AVAILABLE"
    template = (
        "The worker cannot write down speech, because {engine} is not installed there. Install it with "
        "`pip install 'finetuneflow[{extra}]'`, or upload the transcript as a text file."
    )


class TranscriptionFailed(DomainError):
    """`reason` is a whole sentence, that of the engine where it said one."""

    status = 500
    code = "TRANSCRIPTION_FAILED"
    template = "The recording could not be written down. {reason} Try again, or set WHISPER_MODEL to a smaller model."


class TranscriptionCancelled(DomainError):
    """What a content says whose job was cancelled; nobody is answered with it."""

    code = "TRANSCRIPTION_CANCELLED"
    template = "The recording was not written down, because its job was cancelled. Delete it and add it again."
