"""A device that is attached by ioctl."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .. import atfork
from ..threads import run_in_daemon_thread
from .attachment import AttachConfig, Attachment
from .ioctl import Ioctl, ioctl
from .writeback import sync


class IoctlAttachment(Attachment):
    """An attachment by ioctl, with a thread that stays in NBD_DO_IT.

    When the process dies, the kernel fails what is in flight and frees the device at once. But any
    stop of that thread ends the device too: Ctrl-Z, a debugger, a frozen container, a suspend.
    """

    def __init__(self, index: int, path: str, lock: int, config: AttachConfig) -> None:
        """Give the kernel its ends of the socket pairs, then the rest of the configuration.

        SET_SOCK goes first: it decides between two processes that want the same device. Only the
        thread that made the first may make the others.

        Raises:
            OSError: EBUSY if another process was first, EPERM without CAP_SYS_ADMIN.
            AttachError: the kernel refuses a setting of the request queue.

        """
        super().__init__(index, path, lock, config)
        self._fd = -1
        # Read-only is enough for each ioctl and for fsync, and closing such a descriptor does not
        # make udev probe the device.
        self._fd = atfork.open_protected(path)
        try:
            ioctl(self._fd, Ioctl.NBD_SET_SOCK, config.sockets[0])
            self._configure(config)
        except BaseException:
            self.close()
            raise

    def _configure(self, config: AttachConfig) -> None:
        try:
            for sock in config.sockets[1:]:
                ioctl(self._fd, Ioctl.NBD_SET_SOCK, sock)
            ioctl(self._fd, Ioctl.NBD_SET_BLKSIZE, config.block_size)
            ioctl(self._fd, Ioctl.NBD_SET_SIZE_BLOCKS, config.blocks)
            ioctl(self._fd, Ioctl.NBD_SET_FLAGS, config.flags)
            # Even if it is 0: an earlier timeout stays set in the queue.
            ioctl(self._fd, Ioctl.NBD_SET_TIMEOUT, config.timeout)
            self._apply_queue_settings()  # now, while nothing can be in flight
        except OSError:
            # Only since SET_SOCK is the device known to be ours to clear.
            ioctl(self._fd, Ioctl.NBD_CLEAR_SOCK)
            raise

    def start(self) -> None:
        """Have the kernel send requests, by a thread that stays in NBD_DO_IT until the end."""
        self.ended = run_in_daemon_thread(self._do_it)

    def _do_it(self) -> int:
        result = 0
        try:
            ioctl(self._fd, Ioctl.NBD_DO_IT)
        except OSError as exc:
            result = exc.errno or errno.EIO
        finally:
            # When our end of the socket closes, requests in flight are not failed but forgotten,
            # and programs that wait for them hang (nbd_start_device_ioctl). This fails them. It is
            # refused if the process has given up its privileges; closing has to do then.
            with suppress(OSError):
                self.clear_socket()
        return result

    def _open_live(self) -> None:
        # NBD_DO_IT asks for one more scan after the device can be read, but before it releases
        # config_lock (nbd_start_device_ioctl). The second program to open it would find the
        # partitions gone for a moment. NBD_CLEAR_QUE does nothing but wait for that lock.
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_CLEAR_QUE)
        with self.using_node():
            atfork.close_protected(atfork.open_protected(self.path))
        self.drop_cache()

    def drop_cache(self) -> None:
        """Drop what the scan for partitions has left in the page cache.

        This device always has a user, the thread in NBD_DO_IT; so what is written below the cache
        (by device mapper, say) would not be what the next program reads that uses the node itself.
        """
        with self._control() as fd, suppress(OSError):  # refused without CAP_SYS_ADMIN
            ioctl(fd, Ioctl.BLKFLSBUF)

    def set_size(self, blocks: int) -> None:
        """Have the kernel change the size."""
        with self._control() as fd:
            ioctl(fd, Ioctl.NBD_SET_SIZE_BLOCKS, blocks)

    def _sync_without_node(self) -> None:
        with self._control() as fd:
            sync(self.index, fd)

    def disconnect_kernel(self) -> None:
        """No-op: NBD_DO_IT returns by itself once the sockets are closed."""

    def _close_node(self) -> None:
        with self._guard:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            atfork.close_protected(fd)

    @contextmanager
    def _control(self) -> Iterator[int]:
        """Duplicate the descriptor, so that a close meanwhile cannot make it another file's."""
        with self._guard:
            if self._fd < 0:
                raise OSError(errno.ENODEV, "the device is already detached")
            fd = atfork.protect_fd(os.dup(self._fd))
        try:
            yield fd
        finally:
            atfork.close_protected(fd)
