"""Give up root's privileges for those of another user (``--user``, ``--group``)."""

from __future__ import annotations

import grp
import os
import pwd
import re
from dataclasses import dataclass
from typing import Self

from .errors import SpecError, UsageError


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and groups to go on as.

    Attributes:
        user: the user's number; None to stay the same user.
        group: the number of the group.
        groups: numbers of the supplementary groups.

    """

    user: int | None
    group: int
    groups: tuple[int, ...]

    @classmethod
    def find(cls, user: str | None, group: str | None) -> Self | None:
        """Look up a user and a group by name or number.

        Args:
            user: their supplementary groups come with them, and their own group unless another is
                given. A number without a name needs a group. None to stay the same user.
            group: the group; without a user, it replaces all groups. None for the user's.

        Returns:
            None if neither is given.

        Raises:
            UsageError: there is none of that name, or a group is missing.

        """
        if user is None:
            if group is None:
                return None
            number = _group_number(group)
            return cls(None, number, (number,))
        account = _account(user)
        if isinstance(account, int):
            if group is None:
                raise UsageError(f"user {user} has no group, as it has no name: add --group GROUP")
            number = _group_number(group)
            return cls(account, number, (number,))
        own = account.pw_gid if group is None else _group_number(group)
        return cls(account.pw_uid, own, tuple(os.getgrouplist(account.pw_name, own)))

    def check(self) -> None:
        """Refuse early what :meth:`assume` could not do.

        Raises:
            SpecError: this process is not root's.

        """
        if os.geteuid() != 0:
            raise SpecError("--user and --group need root: start it as that user instead")

    def own(self, path: str) -> None:
        """Give a file to the user and the group; a link itself, not what it leads to.

        Raises:
            OSError: not permitted.

        """
        user = -1 if self.user is None else self.user
        os.chown(path, user, self.group, follow_symlinks=False)

    def assume(self) -> None:
        """Go on as this user in these groups; there is no way back.

        Raises:
            SpecError: the system refuses, as in a container without CAP_SETUID or CAP_SETGID.

        """
        try:
            # The groups first: the user has no right to change them.
            os.setgroups(self.groups)
            os.setresgid(self.group, self.group, self.group)
            if self.user is not None:
                os.setresuid(self.user, self.user, self.user)
        except OSError as exc:
            raise SpecError(f"--user, --group: cannot change to them: {exc.strerror}") from exc


def _account(user: str) -> pwd.struct_passwd | int:
    """Return a user's account by name or number; the number itself if no account has it."""
    number = _number(user)
    try:
        return pwd.getpwnam(user) if number is None else pwd.getpwuid(number)
    except (KeyError, ValueError):  # ValueError: a null character
        if number is None:
            raise UsageError(f"there is no user {user!r}") from None
        return number


def _group_number(group: str) -> int:
    number = _number(group)
    try:
        return grp.getgrnam(group).gr_gid if number is None else number
    except (KeyError, ValueError):
        raise UsageError(f"there is no group {group!r}") from None


def _number(text: str) -> int | None:
    """Return the number of a user or a group; None for what can only be a name."""
    # int() alone would accept digits of other scripts, and refuse thousands of digits.
    number = int(text) if re.fullmatch("[0-9]{1,10}", text) else _MAX_ID + 1
    return number if number <= _MAX_ID else None


_MAX_ID = 2**32 - 2  # -1 means "unchanged" to the system calls
