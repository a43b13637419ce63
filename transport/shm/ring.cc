#include "transport/shm/ring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "transport/shm/memfd.h"

namespace rbt::transport::shm {

bool RingMemory::Sizes::valid() const noexcept {
  const auto good = [](std::uint32_t count) {
    return std::has_single_bit(count) && count >= kSlotsMin && count <= kSlotsMax;
  };
  return good(to_acceptor) && good(to_connector);
}

std::size_t RingMemory::Sizes::bytes() const noexcept {
  return kSlotsAt + (std::size_t{to_acceptor} + to_connector) * kSlotSize;
}

std::uint32_t slot_count_for(std::uint32_t receive_size, std::uint32_t send_depth) noexcept {
  // Room for four of the largest messages, so that one can be read while others are written, and for as many one-slot
  // messages as may be posted: a capsule never waits for the ring.
  const std::uint32_t wanted =
      std::max(4 * slots_for(std::min(receive_size, kReceiveSizeMax)), std::min(send_depth, kSlotsMax));
  return std::bit_ceil(std::clamp(wanted, kSlotsMin, kSlotsMax));
}

Result<std::shared_ptr<RingMemory>> RingMemory::create(Sizes sizes, Descriptor& descriptor) {
  const std::size_t size = sizes.bytes();
  const std::string what = fmt::format("making {} bytes of shared memory for a connection", size);
  Descriptor fd(::memfd_create("rbt-shm-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return errno_failure(errno, what, "raise the limit of open files (`ulimit -n`)");
  if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0 ||
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    return errno_failure(errno, what, "check the free memory (`free`)");
  void* const data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (data == MAP_FAILED) return errno_failure(errno, what, "check the free memory (`free`) and `ulimit -v`");
  descriptor = std::move(fd);
  return std::shared_ptr<RingMemory>(new RingMemory(static_cast<std::byte*>(data), sizes));
}

Result<std::shared_ptr<RingMemory>> RingMemory::attach(Sizes sizes, const Descriptor& descriptor) {
  if (!sizes.valid())
    return failure(ErrorKind::protocol,
                   fmt::format("ring sizes of {} and {} slots: powers of two from {} to {} are allowed",
                               sizes.to_acceptor, sizes.to_connector, kSlotsMin, kSlotsMax));
  auto file = inspect_memfd(descriptor.get());
  if (!file) return failure(std::move(file.error()).within("the ring"));
  if (file->huge) return failure(ErrorKind::protocol, "the ring is on huge pages: only ordinary pages are allowed");
  if (file->size != sizes.bytes())
    return failure(ErrorKind::protocol, fmt::format("the ring's memfd has {} bytes: {} are needed for its slots",
                                                    file->size, sizes.bytes()));
  // Not populated: its pages are the creator's, and a dishonest one would have us pay for them before anybody accepts.
  void* const data = ::mmap(nullptr, sizes.bytes(), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.get(), 0);
  if (data == MAP_FAILED) return errno_failure(errno, "mapping a connection's ring");
  return std::shared_ptr<RingMemory>(new RingMemory(static_cast<std::byte*>(data), sizes));
}

RingMemory::~RingMemory() {
  ::munmap(data_, sizes_.bytes());
}

SideControl& RingMemory::control(unsigned side) const noexcept {
  // Objects of implicit lifetime in memory that mmap() has made; both sides agree on their layout.
  return reinterpret_cast<SideControl*>(data_)[side];
}
Slot* RingMemory::slots(unsigned side) const noexcept {
  return reinterpret_cast<Slot*>(data_ + kSlotsAt) + (side == kConnector ? 0 : sizes_.to_acceptor);
}
std::uint32_t RingMemory::slot_count(unsigned side) const noexcept {
  return side == kConnector ? sizes_.to_acceptor : sizes_.to_connector;
}

}  // namespace rbt::transport::shm
