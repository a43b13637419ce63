"""An NBD client that keeps to nothing: every request goes out as it is asked for. libnbd and qemu keep to block sizes.

Fixed newstyle handshake with NBD_OPT_EXPORT_NAME, simple replies (https://github.com/NetworkBlockDevice/nbd, doc/proto.md).
"""
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES = 0, 1, 2, 3, 4, 5, 6
FUA, NO_HOLE, FAST_ZERO = 1, 2, 16
EPERM, EIO, EINVAL, ENOSPC, ENOTSUP = 1, 5, 22, 28, 95  # as NBD carries them


class RawNbd:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        magic, option_magic, _ = struct.unpack(">QQH", self.receive(18))
        assert magic == 0x4E42444D41474943 and option_magic == 0x49484156454F5054
        self.socket.sendall(struct.pack(">I", 3) + struct.pack(">QII", option_magic, 1, 0))  # no zeroes; export ""
        self.size, self.flags = struct.unpack(">QH", self.receive(10))
        self.cookie = 0

    def receive(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise ConnectionError("the server hung up")
            data += more
        return data

    def send(self, kind, offset=0, length=0, flags=0, data=b""):
        """Only sends it. Returns its cookie."""
        self.cookie += 1
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, self.cookie, offset, length or len(data)) + data)
        return self.cookie

    def reply(self, read_lengths):
        """The next reply, whichever it is: cookie, error and data."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == 0x67446698, hex(magic)
        return cookie, error, b"" if error else self.receive(read_lengths.get(cookie, 0))

    def ask(self, kind, offset=0, length=0, flags=0, data=b""):
        """Error number (0: none) and data."""
        cookie = self.send(kind, offset, length, flags, data)
        answered, error, data = self.reply({cookie: length if kind == READ else 0})
        assert answered == cookie
        return error, data

    def close(self):
        self.send(DISCONNECT)
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
