"""Why a video gave no text: each failure has its own code and a sentence that says what to do."""

from backend.kit.errors import DomainError


class VideoUrlInvalid(DomainError):
    code = "VIDEO_URL_INVALID"
    template = (
        "This is not the address of a YouTube video. Send one like https://www.youtube.com/watch?v=VIDEO_ID; for a "
        "page of another site use the type 'website'."
    )


class VideoIsPlaylist(DomainError):
    code = "VIDEO_IS_PLAYLIST"
    template = "This is the address of a playlist. Open one of its videos and send that video's address."


class VideoIsLive(DomainError):
    code = "VIDEO_IS_LIVE"
    template = "The video is live or has not begun yet. Send it again when its recording can be watched."


class VideoTooLong(DomainError):
    code = "VIDEO_TOO_LONG"
    template = (
        "The video is {minutes} minutes long, and {limit_minutes} are allowed (YOUTUBE_MAX_MINUTES). Use a shorter "
        "one, or upload its transcript as a text file."
    )


class VideoTooLarge(DomainError):
    code = "VIDEO_TOO_LARGE"
    template = (
        "The video's audio has more than {limit_mb} MB. Use a shorter video, or upload its transcript as a text file."
    )


class VideoUnavailable(DomainError):
    code = "VIDEO_UNAVAILABLE"
    template = (
        "YouTube does not show this video: {reason} Check its address in a browser where you are not logged in, or "
        "upload the recording as a file."
    )


class VideoAgeRestricted(DomainError):
    code = "VIDEO_AGE_RESTRICTED"
    template = (
        "YouTube shows this video only to adults who are logged in, so it cannot be read from here. Upload the "
        "recording or its transcript as a file."
    )


class VideoBlocked(DomainError):
    """`reason` is a whole sentence."""

    status = 503
    code = "VIDEO_BLOCKED"
    template = (
        "YouTube refuses to answer this server. {reason} Set YOUTUBE_PROXY_URL to a proxy that it answers, or upload "
        "the recording or its transcript as a file."
    )


class VideoHasNoCaptions(DomainError):
    """The video can be watched, but has no captions that could be used."""

    code = "VIDEO_HAS_NO_CAPTIONS"
    template = (
        "The video has no captions in the languages that are asked for ({languages}). Send async_process=true with a "
        "content_id, so that its audio is transcribed, or upload the recording as a file."
    )


class VideoAudioUnavailable(DomainError):
    """Neither captions nor audio are to be had."""

    code = "VIDEO_AUDIO_UNAVAILABLE"
    template = (
        "The video has no usable captions, and its audio cannot be downloaded ({reason}). Upload the recording or its "
        "transcript as a file."
    )


class VideoUnreachable(DomainError):
    """It failed for a reason that may pass."""

    status = 503
    code = "VIDEO_UNREACHABLE"
    template = "YouTube cannot be reached or fails ({reason}). Try again later, or upload the recording as a file."
    retryable = True
