#include "tests/shm/raw_peer.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <vector>

#include "common/clock.h"
#include "transport/shm/address.h"

namespace rbt::test {

using namespace transport::shm;

namespace {
constexpr RingMemory::Sizes kSizes{256, 256};
constexpr Duration kPatience = std::chrono::seconds(8);
}  // namespace

Descriptor unsealed_memfd(std::size_t size) {
  Descriptor fd(::memfd_create("raw", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(fd.valid());
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  return fd;
}

Descriptor sealed_memfd(std::size_t size) {
  Descriptor fd = unsealed_memfd(size);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  return fd;
}

bool RawPeer::connect(const std::string& path) {
  socket_ = Descriptor(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  REQUIRE(socket_.valid());
  return connect_socket(socket_.get(), path) == 0;
}

HelloMessage RawPeer::honest_hello() const {
  HelloMessage hello;
  hello.slots_to_acceptor = kSizes.to_acceptor;
  hello.slots_to_connector = kSizes.to_connector;
  hello.receive_size = 4160;
  hello.incoming_reads = 16;
  return hello;
}

bool RawPeer::establish(const std::string& path) {
  if (!connect(path)) return false;
  auto ring = RingMemory::create(kSizes, ring_fd_);
  REQUIRE(ring.has_value());
  ring_ = std::move(*ring);
  producer_ = std::make_unique<Producer>(*ring_, kConnector);
  if (say(honest_hello(), ring_fd_.get()) != Sent::sent) return false;
  Packet packet;
  return await(MessageType::accept, packet) && say(ReadyMessage{}) == Sent::sent;
}

Sent RawPeer::say_bytes(const void* data, std::size_t size) {
  return send_bytes(socket_.get(), {static_cast<const std::byte*>(data), size});
}

bool RawPeer::say_with_descriptors(std::size_t count) {
  const Descriptor fd = sealed_memfd(4096);
  const std::vector<int> fds(count, fd.get());
  std::vector<std::byte> control(CMSG_SPACE(count * sizeof(int)));
  DoorbellMessage message;
  iovec vector{&message, sizeof message};
  msghdr header{};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  cmsghdr* const part = CMSG_FIRSTHDR(&header);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(count * sizeof(int));
  std::memcpy(CMSG_DATA(part), fds.data(), count * sizeof(int));
  return ::sendmsg(socket_.get(), &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
}

bool RawPeer::await(MessageType type, Packet& packet) {
  const SystemClock clock;
  const Instant deadline = clock.now() + kPatience;
  int resets = 0;
  while (clock.now() < deadline) {
    switch (receive(socket_.get(), packet)) {
      case Received::nothing: turn_(); break;
      case Received::closed:
        // A reset comes before what was said last.
        if (++resets > 1) return false;
        break;
      case Received::violation: return false;
      case Received::packet:
        if (const auto goodbye = packet.as<GoodbyeMessage>()) farewell.assign(goodbye->text.data(), goodbye->text_size);
        if (packet.type() == type) return true;
    }
  }
  FAIL("neither the message nor the end of the connection came in time");
  return false;
}

bool RawPeer::cut_off() {
  Packet packet;
  farewell.clear();
  // No such message ever comes: only the end can end this.
  return !await(MessageType::hello, packet);
}

void RawPeer::put(const void* data, std::uint32_t size) {
  REQUIRE(producer_->reserve(slots_for(size)) == Producer::Room::enough);
  producer_->begin(SlotKind::send, size, 0);
  producer_->append(static_cast<const std::byte*>(data), size);
  producer_->publish();
}

}  // namespace rbt::test
