#!/usr/bin/env python3
"""Takes a capture of NVMe over RoCEv2 apart and writes each kind of message once, as hexadecimal text.

Usage: extract.py CAPTURE.pcap DIRECTORY

Layers, outermost first: pcap, Ethernet, IPv4, UDP port 4791, InfiniBand transport (BTH and its extension headers), then
either connection management datagrams (queue pair 1) or reliable-connection messages, which are put together from their
packets and told apart by the connection they are on. The capture must be complete: a gap in the packet sequence numbers
ends the program. Only the standard library is used.
"""
import collections
import os
import socket
import struct
import sys

# BTH opcodes of reliable connections: (what it belongs to, first packet, last packet).
SEND, WRITE, READ_RESPONSE = "send", "write", "read response"
DATA_OPCODES = {
    0x00: (SEND, True, False), 0x01: (SEND, False, False), 0x02: (SEND, False, True), 0x04: (SEND, True, True),
    0x16: (SEND, False, True), 0x17: (SEND, True, True),
    0x06: (WRITE, True, False), 0x07: (WRITE, False, False), 0x08: (WRITE, False, True), 0x0A: (WRITE, True, True),
    0x0D: (READ_RESPONSE, True, False), 0x0E: (READ_RESPONSE, False, False), 0x0F: (READ_RESPONSE, False, True),
    0x10: (READ_RESPONSE, True, True),
}
READ_REQUEST, ACKNOWLEDGE, UD_SEND_ONLY = 0x0C, 0x11, 0x64
HAS_RETH = {0x06, 0x0A, 0x0C}
HAS_AETH = {0x0D, 0x0F, 0x10, 0x11}
HAS_IETH = {0x16, 0x17}

CM_NAMES = {0x10: "req", 0x11: "mra", 0x12: "rej", 0x13: "rep", 0x14: "rtu", 0x15: "dreq", 0x16: "drep"}
# Where private data begins after the 24-byte MAD header, and how long it is. A REQ of the RDMA IP CM service begins with
# 36 bytes of addresses, which rdma_cm keeps to itself.
CM_PRIVATE = {0x10: (140 + 36, 92 - 36), 0x12: (84, 148), 0x13: (36, 196), 0x14: (8, 224), 0x15: (12, 220), 0x16: (8, 224)}

ADMIN = {0x00: "delete_sq", 0x02: "get_log_page", 0x06: "identify", 0x09: "set_features", 0x0A: "get_features",
         0x0C: "async_event_request", 0x18: "keep_alive"}
IO = {0x00: "flush", 0x01: "write", 0x02: "read", 0x05: "compare", 0x08: "write_zeroes", 0x09: "dataset_management"}
FABRICS = {0x00: "property_set", 0x01: "connect", 0x04: "property_get"}
CNS = {0: "namespace", 1: "controller", 2: "active_namespaces", 3: "namespace_descriptors", 5: "csi_namespace",
       6: "csi_controller", 7: "csi_active_namespaces", 8: "independent_namespace"}
LOGS = {0: "supported_logs", 1: "errors", 2: "smart", 3: "firmware", 4: "changed_namespaces", 5: "command_effects", 0xC: "ana",
        0x70: "discovery"}
PROPERTIES = {0x00: "cap", 0x08: "vs", 0x0C: "intms", 0x14: "cc", 0x1C: "csts", 0x20: "nssr", 0x68: "crto"}
FEATURES = {6: "write_cache", 7: "number_of_queues", 0xB: "async_event_configuration", 0xE: "timestamp", 0xF: "keep_alive_timer",
            0x16: "host_behaviour"}


def u16(data, at): return struct.unpack_from("<H", data, at)[0]
def u32(data, at): return struct.unpack_from("<I", data, at)[0]
def u64(data, at): return struct.unpack_from("<Q", data, at)[0]
def be24(data, at): return int.from_bytes(data[at:at + 3], "big")


def packets(path):
    """(source, destination, InfiniBand transport bytes without the ICRC) of every RoCEv2 packet."""
    with open(path, "rb") as file:
        header = file.read(24)
        magic, link = u32(header, 0), u32(header, 20)
        if magic not in (0xA1B2C3D4, 0xA1B23C4D) or link != 1:
            sys.exit(f"{path}: not a little-endian Ethernet pcap (magic {magic:#x}, link type {link})")
        while record := file.read(16):
            captured, length = u32(record, 8), u32(record, 12)
            frame = file.read(captured)
            if captured != length:
                sys.exit(f"{path}: packet cut to {captured} of {length} bytes: capture with a larger snapshot length")
            if frame[12:14] != b"\x08\x00" or frame[23] != 17:
                continue
            ip = frame[14:]
            udp = ip[(ip[0] & 15) * 4:int.from_bytes(ip[2:4], "big")]
            if int.from_bytes(udp[2:4], "big") == 4791:
                yield socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20]), udp[8:-4]


class Command:
    """One command on one connection and all that was moved for it."""

    def __init__(self, connection, capsule):
        self.connection, self.capsule = connection, capsule
        self.data = b""       # what RDMA READ or WRITE moved
        self.response = None  # 16 bytes
        self.invalidated = None
        self.name = self.describe()

    def describe(self):
        sqe, connection = self.capsule[:64], self.connection
        opcode, dw10 = sqe[0], u32(sqe, 40)
        if opcode == 0x7F:
            kind = FABRICS.get(sqe[4], f"fabrics_{sqe[4]:02x}")
            if kind == "connect":
                return "connect_admin" if connection.qid == 0 else "connect_io"
            prop = PROPERTIES.get(u32(sqe, 44), f"{u32(sqe, 44):x}")
            if kind == "property_set" and prop == "cc":
                value = u64(sqe, 48)
                # Without the enable bit: before enabling, to set the rest, or after, to reset.
                prop += ("_shutdown" if value >> 14 & 3 else "_enable" if value & 1 else
                         "_disable" if connection.enabled else "_configure")
                connection.enabled = value & 1 == 1
            return f"{kind}_{prop}"
        if connection.qid:
            name = IO.get(opcode, f"io_{opcode:02x}")
            if opcode in (1, 2):
                name += "_in_capsule" if sqe[39] == 0x01 else "_keyed"
            return name
        name = ADMIN.get(opcode, f"admin_{opcode:02x}")
        if name == "identify":
            name += "_" + CNS.get(dw10 & 0xFF, f"cns_{dw10 & 0xFF:02x}")
        elif name == "get_log_page":
            name += "_" + LOGS.get(dw10 & 0xFF, f"{dw10 & 0xFF:02x}")
            if dw10 & 0xFF == 0x70:
                name += "_entries" if u64(sqe, 48) or (dw10 >> 16) + 1 > 256 else "_header"
        elif name in ("set_features", "get_features"):
            name += "_" + FEATURES.get(dw10 & 0xFF, f"{dw10 & 0xFF:02x}")
        return name


class Connection:
    """One queue's connection, from its REQ on."""

    def __init__(self, qid, host, host_qpn):
        self.qid, self.host, self.host_qpn = qid, host, host_qpn
        self.role = ""
        self.target, self.target_qpn = None, None
        self.discovery, self.enabled = False, False
        self.commands = {}                  # in flight, by command identifier
        self.reads = collections.deque()    # commands whose data the target is reading, in order
        self.writing = None                 # the command whose data the target is writing


class Extractor:
    """Follows the connections of a capture and writes what it sees."""

    def __init__(self, directory):
        self.directory = directory
        self.written = {}      # file name -> line of the index
        self.transcript = []
        self.requests = {}     # CM communication identifier of the host -> Connection
        self.by_qpn = {}       # (address, queue pair number) -> (Connection, does this one receive commands?)
        self.partial = {}      # (address, queue pair number) -> [kind, bytes]
        self.sequence = {}     # (address, queue pair number, responses?) -> next packet sequence number

    def write(self, name, data, about):
        """Writes a kind of message the first time it is seen."""
        name += ".hex"
        if name in self.written or not data:
            return
        self.written[name] = f"{name:<61} {len(data):>5}  {about}"
        with open(os.path.join(self.directory, name), "w") as file:
            file.write(f"# {about}; {len(data)} bytes\n")
            for at in range(0, len(data), 32):
                file.write(data[at:at + 32].hex() + "\n")

    # -- connection management ---------------------------------------------------------------------------------------

    def management(self, source, destination, mad):
        if mad[1] != 0x07:
            return
        attribute, body = int.from_bytes(mad[16:18], "big"), mad[24:]
        name = CM_NAMES.get(attribute, f"{attribute:02x}")
        at, length = CM_PRIVATE.get(attribute, (0, 0))
        private = body[at:at + length]
        local, remote = body[0:4], body[4:8]
        if name == "req":
            qid = u16(private, 2)
            if (source, local) not in self.requests:
                self.requests[source, local] = Connection(qid, source, be24(body, 32))
            role = "admin" if qid == 0 else "io"
            if u16(private, 0) != 0:  # no kernel's host, but the rejections that ./capture provokes
                role = "bad_record_format"
            elif qid == 0 and u16(private, 6) > 32:
                role = "bad_queue_size"
            self.requests[source, local].role = role
            about = f"{role}: qid {qid}, hrqsize {u16(private, 4)}, hsqsize {u16(private, 6)}, cntlid {u16(private, 8)}"
            self.note("host  ", f"CM REQ {about}, responder resources {body[35]}, initiator depth {body[39]}")
            self.write(f"cm_req_{role}.private", private, f"CM REQ private data, host to target, {about}")
        elif name == "rep":
            connection = self.requests[destination, remote]
            connection.target, connection.target_qpn = source, be24(body, 12)
            self.by_qpn[source, connection.target_qpn] = (connection, True)
            self.by_qpn[destination, connection.host_qpn] = (connection, False)
            about = f"crqsize {u16(private, 2)}"
            self.note("target", f"CM REP {connection.role}: {about}, responder resources {body[24]}, initiator depth {body[25]}")
            self.write(f"cm_rep_{connection.role}.private", private,
                       f"CM REP private data, target to host, {connection.role}: {about}")
        elif name == "rej":
            reason = int.from_bytes(body[10:12], "big")
            connection = self.requests.get((destination, remote))
            role = connection.role if connection else "unknown"
            about = f"answer to {role}: CM reason {reason}, status {u16(private, 2)}"
            self.note("target", f"CM REJ {about}")
            self.write(f"cm_rej_{role}.private", private, f"CM REJ private data, target to host, {about}")
        else:
            # Either end may disconnect; the host's address is known from its REQs.
            hosts = {connection.host for connection in self.requests.values()}
            self.note("host  " if source in hosts else "target", f"CM {name.upper()}")

    # -- reliable connections ------------------------------------------------------------------------------------------

    def packet(self, source, destination, data):
        opcode, qpn = data[0], be24(data, 5)
        pad = data[1] >> 4 & 3
        if opcode == UD_SEND_ONLY:
            if qpn == 1:
                self.management(source, destination, data[12 + 8:])
            return
        if (destination, qpn) not in self.by_qpn:
            return
        connection, to_target = self.by_qpn[destination, qpn]
        at, reth, ieth = 12, None, None
        if opcode in HAS_RETH:
            reth = struct.unpack_from(">QII", data, at)
            at += 16
        if opcode in HAS_AETH:
            at += 4
        if opcode in HAS_IETH:
            ieth = int.from_bytes(data[at:at + 4], "big")
            at += 4
        payload = data[at:len(data) - pad]
        if opcode == ACKNOWLEDGE:
            return
        self.check_sequence(destination, qpn, opcode, be24(data, 9), reth)
        if opcode == READ_REQUEST:
            command = self.find(connection, reth)
            connection.reads.append(command)
            self.note("target", f"  RDMA READ {reth[2]} bytes for {self.label(command)}")
            return
        if opcode not in DATA_OPCODES:
            sys.exit(f"unexpected BTH opcode {opcode:#x}")
        kind, first, last = DATA_OPCODES[opcode]
        key = (destination, qpn, kind)
        if first:
            self.partial[key] = b""
            if kind == WRITE:
                connection.writing = self.find(connection, reth)
        self.partial[key] += payload
        if last:
            self.message(connection, to_target, kind, self.partial.pop(key), ieth)

    def check_sequence(self, destination, qpn, opcode, psn, reth):
        """Requests count their own sequence numbers; responses to a READ carry those it has reserved."""
        if opcode in DATA_OPCODES and DATA_OPCODES[opcode][0] == READ_RESPONSE:
            return
        key = (destination, qpn)
        if self.sequence.get(key, psn) != psn:
            sys.exit(f"packets are missing or were sent again before {psn} to queue pair {qpn}: capture again")
        step = max(1, -(-reth[2] // 4096)) if opcode == READ_REQUEST else 1
        self.sequence[key] = psn + step & 0xFFFFFF

    @staticmethod
    def find(connection, reth):
        """The command in flight whose keyed SGL covers an RDMA access."""
        address, rkey, _ = reth
        for command in connection.commands.values():
            sqe = command.capsule
            length = int.from_bytes(sqe[32:35], "little")
            if sqe[39] >> 4 == 4 and u32(sqe, 35) == rkey and u64(sqe, 24) <= address < u64(sqe, 24) + length:
                return command
        sys.exit(f"RDMA access with key {rkey:#x} that no command in flight has offered")

    def message(self, connection, to_target, kind, data, ieth):
        if kind == READ_RESPONSE:
            command = connection.reads.popleft()
            command.data += data
            if command.name == "connect_admin":
                connection.discovery = data[256:].startswith(b"nqn.2014-08.org.nvmexpress.discovery\0")
        elif kind == WRITE:
            connection.writing.data += data
            self.note("target", f"  RDMA WRITE {len(data)} bytes for {self.label(connection.writing)}")
        elif to_target:
            command = Command(connection, data)
            connection.commands[u16(data, 2)] = command
            extra = f" + {len(data) - 64} bytes in capsule" if len(data) > 64 else ""
            detail = f"nsid {u32(data, 4):#x}, cdw10 {u32(data, 40):#x} {u32(data, 44):#x} {u32(data, 48):#x}"
            self.note("host  ", f"{self.label(command)}{extra}, SGL type {data[39]:#04x}, {detail}")
        else:
            self.complete(connection, data, ieth)

    def complete(self, connection, data, ieth):
        command = connection.commands.pop(u16(data, 12))
        command.response, command.invalidated = data, ieth
        status = u16(data, 14) >> 1
        about = f"status {status:#06x}, result {u64(data, 0):#x}, sqhd {u16(data, 8)}"
        if ieth is not None:
            about += ", sent with invalidate of the command's key"
            if ieth != u32(command.capsule, 35):
                sys.exit("a key was invalidated that was not the command's")
        self.note("target", f"{self.label(command)} {about}")
        name = command.name
        if connection.discovery:
            name = "discovery." + name
        if status & 0x7FF:
            name += f".status_{status & 0x7FF:03x}"
        where = f"{'discovery ' if connection.discovery else ''}qid {'0' if connection.qid == 0 else 'n'}"
        extra = f", {len(command.capsule) - 64} bytes of data in the capsule" if len(command.capsule) > 64 else ""
        self.write(name + ".command", command.capsule, f"command capsule, host to target, {where}{extra}")
        # The lowest bit of an opcode says that data goes to the controller; fabrics commands have it in their type.
        opcode = command.capsule[4] if command.capsule[0] == 0x7F else command.capsule[0]
        direction = "RDMA READ by the target" if opcode & 1 else "RDMA WRITE by the target"
        self.write(name + ".data", command.data, f"data, {direction}, {where}")
        self.write(name + ".response", data, f"response capsule, target to host, {where}, {about}")

    @staticmethod
    def label(command):
        connection = command.connection
        return f"{'discovery' if connection.discovery else 'qid'} {connection.qid} cid {u16(command.capsule, 2)} {command.name}"

    def note(self, who, text):
        self.transcript.append(f"{who} {text}")

    def finish(self):
        with open(os.path.join(self.directory, "index.txt"), "w") as file:
            file.write("\n".join(self.written[name] for name in sorted(self.written)) + "\n")
        with open(os.path.join(self.directory, "transcript.txt"), "w") as file:
            file.write("\n".join(self.transcript) + "\n")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    extractor = Extractor(sys.argv[2])
    for source, destination, data in packets(sys.argv[1]):
        extractor.packet(source, destination, data)
    extractor.finish()


main()
