#include "transport/shm/message.h"

#include <sys/socket.h>

#include <cerrno>

namespace rbt::transport::shm {

namespace {
// Room for one descriptor more than any message carries, so that a surplus one is seen, not cut off.
constexpr std::size_t kDescriptorsSeen = 2;
}  // namespace

std::optional<MessageType> Packet::type() const noexcept {
  MessageHead head{.type = MessageType::hello};
  if (size < sizeof head) return std::nullopt;
  std::memcpy(&head, bytes.data(), sizeof head);
  if (head.magic != kMagic || head.version != kVersion) return std::nullopt;
  return head.type;
}

Received receive(int socket, Packet& packet) noexcept {
  packet.size = 0;
  packet.descriptor.reset();
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kDescriptorsSeen * sizeof(int))> control;
  iovec vector{packet.bytes.data(), packet.bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t count = ::recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count < 0) return errno == EAGAIN || errno == EINTR ? Received::nothing : Received::closed;

  std::size_t descriptors = 0;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t here = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < here; ++i, ++descriptors) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      packet.descriptor = Descriptor(fd);  // a surplus one closes the one before
    }
  }
  // A packet without content cannot be told from the end; nobody of ours sends one.
  if (count == 0) return Received::closed;
  if (descriptors > 1 || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    packet.descriptor.reset();
    return Received::violation;
  }
  packet.size = static_cast<std::size_t>(count);
  return Received::packet;
}

Sent send_bytes(int socket, std::span<const std::byte> bytes, int fd) noexcept {
  // sendmsg takes a pointer to mutable bytes and does not write through it.
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* const part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(part), &fd, sizeof fd);
  }
  while (true) {
    if (::sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0) return Sent::sent;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == ENOBUFS || errno == ENOMEM || errno == ETOOMANYREFS) return Sent::full;
    return Sent::gone;
  }
}

}  // namespace rbt::transport::shm
