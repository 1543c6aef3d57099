"""Serve the page: on this machine only unless told, with limits, and without a trace when the program ends.

Nothing is reported to Gradio's makers, and the browser loads nothing from elsewhere: a policy in the header of every
response forbids it. Everything that is uploaded lies in one temporary folder, which is removed at the end; files older
than an hour are removed before.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

from mer_r1.app import page
from mer_r1.errors import UserError

HERE = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""
WAITING = 16
"""Questions that may wait; one is answered at a time."""
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-ancestors 'self'"
)
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "sans-serif"]


@contextmanager
def without_traces() -> Iterator[Path]:
    """Switch Gradio's reports off, before it is imported; yields the temporary folder of everything it stores."""
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_SHARE"):
        os.environ[name] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    with tempfile.TemporaryDirectory(prefix="mer-r1-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder)


@contextmanager
def served(
    settings: page.Settings, host: str = HERE[0], port: int | None = None, most_megabytes: int = 100
) -> Iterator[str]:
    """Serve the page while the context lasts; yields its address.

    Args:
        settings: what the page offers, see `page.Settings`.
        host: address to listen on.
        port: port; None takes the first free one from 7860 on.
        most_megabytes: largest file that can be uploaded.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    blocks = page.build(settings)
    blocks.queue(max_size=WAITING, default_concurrency_limit=1)
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, ssr_mode=False,
            max_file_size=most_megabytes * 2**20, allowed_paths=[str(page.SCENES)], enable_monitoring=False,
            footer_links=[], run_history=False, mcp_server=False, pwa=False, theme=_theme(),
            css_paths=Path(__file__).parent / "app.css", app_kwargs={"middleware": _middleware()},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port or 'from 7860 on'}: {error}") from error
    try:
        yield address
    finally:
        blocks.close(verbose=False)


def until_interrupted() -> None:
    """Wait for Ctrl-C or a termination signal."""
    with suppress(KeyboardInterrupt):
        Event().wait()


def _middleware() -> list[Any]:
    from starlette.middleware import Middleware

    return [Middleware(_Guard)]


class _Guard:
    """Adds the policy to the header of every response (ASGI middleware)."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                told = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": [*message["headers"], *told]}
            await send(message)

        await self.app(scope, receive, with_policy)


def _theme() -> Any:
    import gradio as gr

    # Fonts of the reader's system, and grey tones with a contrast of at least 4.5.
    theme = gr.themes.Base(primary_hue="blue", neutral_hue="gray", font=_FONTS, font_mono=["monospace"])
    return theme.set(
        body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_700", block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_500", input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700", button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white", button_primary_text_color_dark="white",
    )  # fmt: skip
