"""Commands of the kernel's ublk driver, as it gets them from io_uring."""

from __future__ import annotations

import ctypes
import struct

NAMES = {
    0xC0207504: "ADD_DEV",
    0xC0207505: "DEL_DEV",
    0xC0207506: "START_DEV",
    0xC0207507: "STOP_DEV",
    0xC0207508: "SET_PARAMS",
    0xC0207510: "START_USER_RECOVERY",
    0xC0207511: "END_USER_RECOVERY",
    0x80207512: "GET_DEV_INFO2",
    0x80207513: "GET_FEATURES",
    0x80207514: "DEL_DEV_ASYNC",
    0xC0207515: "UPDATE_SIZE",
    0xC0207517: "TRY_STOP_DEV",
}
FETCH, COMMIT_AND_FETCH = 0xC0107520, 0xC0107521
DEVICE_INFO = struct.Struct("<4HIIiIQQIIQQ")


class Control:
    """One control command, as the driver gets it."""

    def __init__(self, name: str, payload: bytes) -> None:
        fields = struct.unpack_from("<IHHQQHHI", payload)
        self.name = name
        number, _, length, self._address, self.data, path_length, _, _ = fields
        self.number: int | None = None if number == 0xFFFFFFFF else number
        whole = ctypes.string_at(self._address, length) if length else b""
        self.path, self.content = whole[:path_length], whole[path_length:]
        self._address += path_length

    def answer(self, content: bytes) -> None:
        ctypes.memmove(self._address, content, len(content))
