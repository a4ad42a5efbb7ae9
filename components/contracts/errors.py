# SPDX-License-Identifier: Apache-2.0
"""The one error a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence: what is wrong, where, and what to do. A component that raises it
    fails, and the runner prints the message without a traceback.
    """
