"""What edx-platform has at this place, as far as the client asks for it: tokens, signed with the LMS's secret.

A user says what its token claims.
"""

import json
import os
from typing import Any

import jwt


def create_jwt_for_user(user: Any) -> str:
    """The user's token."""
    return jwt.encode(user.claims, json.loads(os.environ["LMS"])["secret"], algorithm="HS256")
