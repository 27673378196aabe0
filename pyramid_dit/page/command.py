"""The command line of the page: `pyramid-flow page`, or `python app.py`."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence

from ..cli.options import OneLineParser, add_model_options, check_model_options
from ..cli.status import exit_status, one_line, status_of
from ..distributed.launcher import Stopped, leave_reason
from .hosts import checked_name

EXAMPLES = """\
examples:
  {0}                     the small checkpoint that ships with this package
  {0} --model rain1011/pyramid-flow-miniflux --variant 768p
  {0} --model rain1011/pyramid-flow-miniflux --variant 768p --gpus 4
  {0} --model models     a folder of checkpoints: visitors choose from a list
  {0} --host 0.0.0.0      for all machines that can reach this one
"""


def parse_options(arguments: Sequence[str], program: str = "pyramid-flow page") -> Namespace:
    """Parse and check the command line.

    Args:
        arguments: What follows the name of the program.
        program: This name, for the help.

    Raises:
        UsageError: An option is unknown, malformed, or does not go with another.
    """
    parser = OneLineParser(
        prog=program,
        description="A page in the browser to make videos with.",
        epilog=EXAMPLES.format(program),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    page = parser.add_argument_group("the page")
    page.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine only)"
    )
    page.add_argument(
        "--port", type=int, metavar="N", help="port (default: the first free one from 7860 on)"
    )
    page.add_argument(
        "--share",
        action="store_true",
        help="also make the page reachable from the internet, through Gradio's servers",
    )
    page.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name by which browsers reach the page, for instance through a proxy; may be "
        "given again; * for all, which lets other sites in",
    )
    model = add_model_options(parser, several=True)
    model.add_argument(
        "--verbose", action="store_true", help="log what is done, and show where an error came from"
    )
    options = parser.parse_args(arguments)
    try:
        options.allow_host = [checked_name(name) for name in options.allow_host]
    except ValueError as error:
        parser.error(f"argument --allow-host: {error}")
    check_model_options(parser, options)
    return options


def main(
    arguments: Sequence[str],
    program: str = "pyramid-flow page",
    command: Sequence[str] = ("-m", "pyramid_dit", "page"),
) -> int:
    """Run the page and return the exit status; errors are printed as one line.

    Args:
        arguments: What follows the name of the program.
        program: This name, for the help and in front of errors.
        command: What Python is called with for further processes, in front of the arguments.
    """
    verbose = False

    def work(received: list[int]) -> None:
        nonlocal verbose
        options = parse_options(arguments, program)
        verbose = options.verbose
        from .serve import run_page

        run_page(options, [*command, *arguments])

    def report(error: BaseException, received: list[int]) -> int:
        if isinstance(error, Stopped):
            return 128 + error.signum
        if received or isinstance(error, KeyboardInterrupt):
            # An import that a signal breaks off may report something else.
            return 128 + (received[0] if received else signal.SIGINT)
        if verbose:
            raise error
        if not leave_reason(one_line(error), exit_status(error)):
            sys.stderr.write(f"{program}: {one_line(error)}\n")
        return exit_status(error)

    return status_of(work, report)
