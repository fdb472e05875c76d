"""Why a web page cannot be had or read: each failure has its own code and a sentence that says what to do."""

from backend.kit.errors import DomainError


class UrlInvalid(DomainError):
    code = "URL_INVALID"
    template = "The URL is not valid: {reason}. Send the page's whole address, as in https://example.com/page."


class UrlNotAllowed(DomainError):
    """Where the guard does not go. The sentence names no address that a name led to: that would map our network."""

    code = "URL_NOT_ALLOWED"
    template = "{host} cannot be fetched: {reason}. Use a page of the public web, or upload its text as a file."


class UrlNotFound(DomainError):
    code = "URL_NOT_FOUND"
    template = (
        "{host} answers that there is no such page (status {status}). Check the URL in a browser and send it anew."
    )


class UrlRefused(DomainError):
    code = "URL_REFUSED"
    template = (
        "{host} refuses the page (status {status}): it needs a login or lets no programs in. Save it in a browser as "
        "PDF and upload that."
    )


class UrlUnreachable(DomainError):
    """It failed for a reason that time does not heal by itself."""

    code = "URL_UNREACHABLE"
    template = "{host} cannot be reached: {reason}. Check the URL in a browser and send it anew."


class UrlAway(UrlUnreachable):
    """It failed for a reason that may pass in seconds."""

    retryable = True


class UrlTooManyRedirects(DomainError):
    code = "URL_TOO_MANY_REDIRECTS"
    template = (
        "{host} leads from one address to the next more than {limit} times. Open the page in a browser and send the "
        "address that it ends at."
    )


class UrlTooLarge(DomainError):
    code = "URL_TOO_LARGE"
    template = "The page at {host} has more than {limit_mb} MB. Send a part of it, or upload the document as a file."


class UrlTypeNotSupported(DomainError):
    code = "URL_TYPE_NOT_SUPPORTED"
    template = (
        "{host} answers with {type}, which is not read. Send the address of a web page (HTML), a PDF or a plain text."
    )


class RobotsDisallow(DomainError):
    code = "ROBOTS_DISALLOW"
    template = (
        "The robots.txt of {host} asks programs to stay away from this page. Ask the site's owner, or upload the text "
        "as a file if you may use it."
    )


class RobotsUnavailable(DomainError):
    """Whoever cannot say what is allowed is taken to allow nothing (RFC 9309, 2.3.1.4)."""

    code = "ROBOTS_UNAVAILABLE"
    template = (
        "The robots.txt of {host} cannot be read ({reason}), so it is not known whether the page may be fetched. "
        "Try again later, or upload the text as a file."
    )
    retryable = True


class WebsiteHasNoText(DomainError):
    code = "WEBSITE_HAS_NO_TEXT"
    template = "The page has no readable text. Send the address of a page with prose, or upload the text as a file."


class FetchCancelled(DomainError):
    """What a content says whose job was cancelled; nobody is answered with it."""

    code = "FETCH_CANCELLED"
    template = "The page was not fetched, because its job was cancelled. Delete it and add the page again."
