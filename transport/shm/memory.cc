#include "transport/shm/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <time.h>

#include <algorithm>
#include <cerrno>

#include "common/check.h"
#include "transport/shm/memfd.h"

namespace rbt::transport::shm {

namespace {

constexpr std::size_t kLocalRegionsMax = std::size_t{1} << 20;

// What a destructor waits for: one peer that was copying when the fence went up.
struct Wait {
  std::shared_ptr<RingMemory> ring;
  Link* link;  // only for Domain::links_ to know it by
  Descriptor socket;
  unsigned peer_side;
  std::uint32_t copying;

  [[nodiscard]] bool over() const noexcept {
    // Acquire: partner is the end of CopySection; the peer's copies are behind us.
    if (ring->control(peer_side).copying.load(std::memory_order_acquire) != copying) return true;
    pollfd dead{socket.get(), 0, 0};
    return ::poll(&dead, 1, 0) > 0 && (dead.revents & (POLLHUP | POLLERR)) != 0;
  }
};

void pause_briefly(unsigned round) noexcept {
  if (round < 64) return;  // over() itself costs about a microsecond
  const timespec nap{0, 50'000};
  ::nanosleep(&nap, nullptr);
}

Result<void> check_shareable(const MemorySpan& memory) {
  if (memory.fd < 0)
    return failure(
        ErrorKind::unsupported,
        fmt::format("registering {} bytes of anonymous memory for a peer over shm: another process can reach "
                    "only memory behind a memfd; allocate it with SharedMemory, or register it with "
                    "RemoteAccess::none and copy",
                    memory.size));
  auto file = inspect_memfd(memory.fd);
  if (!file) return failure(std::move(file.error()).within(fmt::format("registering {} bytes for shm", memory.size)));
  if (memory.fd_offset > file->size || memory.size > file->size - memory.fd_offset)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("registering {} bytes at offset {} of a memfd for shm: it has only {} bytes",
                               memory.size, memory.fd_offset, file->size));
  return {};
}

}  // namespace

class Region final : public MemoryRegion {
 public:
  Region(Domain& domain, const MemorySpan& span, std::uint32_t lkey, std::uint32_t rkey) noexcept
      : MemoryRegion(span, lkey, rkey), domain_(domain) {}
  ~Region() override { domain_.deregister(lkey_, rkey_); }

 private:
  Domain& domain_;
};

std::uint32_t Domain::new_key() {
  while (true) {
    const auto key = static_cast<std::uint32_t>(random_());
    if (key != 0 && local_.find(key) == nullptr && remote_.find(key) == nullptr) return key;
  }
}

Result<std::unique_ptr<MemoryRegion>> Domain::register_memory(const MemorySpan& memory, RemoteAccess access) {
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data);
  if (memory.data == nullptr || memory.size == 0 || memory.size > ~base)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("registering {} bytes for shm: there is no such memory", memory.size));
  check(memory.landing == nullptr || access == RemoteAccess::none || access == RemoteAccess::read,
        "what peers write themselves does not pass a landing");
  auto announced = std::make_shared<Announced>();
  if (access != RemoteAccess::none) {
    auto shareable = check_shareable(memory);
    if (!shareable) return failure(std::move(shareable.error()));
    announced->descriptor = Descriptor(::fcntl(memory.fd, F_DUPFD_CLOEXEC, 0));
    if (!announced->descriptor.valid())
      return errno_failure(errno, "keeping the descriptor of a region", "raise the limit of open files (`ulimit -n`)");
  }
  const std::scoped_lock lock(mutex_);
  if (local_.size() >= kLocalRegionsMax || (access != RemoteAccess::none && remote_.size() >= kRegionsMax))
    return failure(
        ErrorKind::resource,
        fmt::format("registering a region for shm: {} regions, {} of them for peers, are registered already; {} "
                    "and {} are the limits: register fewer, larger regions",
                    local_.size(), remote_.size(), kLocalRegionsMax, kRegionsMax));
  const std::uint32_t lkey = new_key();
  local_.insert(lkey, {memory.data, memory.size, memory.landing});
  version_.fetch_add(1, std::memory_order_release);
  // A region that no peer may use has a key all the same: one that nobody has ever been told.
  std::uint32_t rkey = new_key();
  while (rkey == lkey)
    rkey = new_key();
  if (access != RemoteAccess::none) {
    announced->message.key = rkey;
    announced->message.access = static_cast<std::uint32_t>(access);
    announced->message.base = base;
    announced->message.length = memory.size;
    announced->message.fd_offset = memory.fd_offset;
    for (Link* link : links_)
      link->announce(announced->message, announced->descriptor.get());
    remote_.insert(rkey, std::move(announced));
  }
  return std::make_unique<Region>(*this, memory, lkey, rkey);
}

void Domain::deregister(std::uint32_t lkey, std::uint32_t rkey) {
  std::vector<Wait> waits;
  {
    const std::scoped_lock lock(mutex_);
    local_.erase(lkey);
    version_.fetch_add(1, std::memory_order_release);
    if (!remote_.erase(rkey)) return;
    for (Link* link : links_)
      link->revoke(rkey);
    for (Link* link : links_) {
      const std::uint32_t copying = link->copying();
      if ((copying & 1) == 0) continue;
      waits.push_back(
          {link->ring(), link, Descriptor(::fcntl(link->socket(), F_DUPFD_CLOEXEC, 0)), 1 - link->side(), copying});
    }
  }
  const SystemClock clock;
  const Instant deadline = clock.now() + revoke_timeout_;
  for (unsigned round = 0; !waits.empty(); ++round) {
    std::erase_if(waits, [](const Wait& wait) { return wait.over(); });
    if (waits.empty() || clock.now() >= deadline) break;
    pause_briefly(round);
  }
  if (waits.empty()) return;
  // A peer that is stopped, or lies. Its connection ends here; what it has mapped it can still touch (docs/shm.md).
  const std::scoped_lock lock(mutex_);
  for (const Wait& wait : waits)
    if (std::find(links_.begin(), links_.end(), wait.link) != links_.end() && wait.link->ring() == wait.ring)
      wait.link->cut();
}

void Domain::attach(Link& link) {
  const std::scoped_lock lock(mutex_);
  links_.push_back(&link);
  remote_.for_each([&](std::uint32_t, const std::shared_ptr<Announced>& announced) {
    link.announce(announced->message, announced->descriptor.get());
  });
}

void Domain::detach(Link& link) {
  const std::scoped_lock lock(mutex_);
  std::erase(links_, &link);
}

void Domain::copy_keys(LocalKeys& keys, std::uint64_t& version) {
  const std::scoped_lock lock(mutex_);
  keys = local_;
  version = version_.load(std::memory_order_relaxed);
}

bool Domain::announced(std::uint32_t rkey) {
  const std::scoped_lock lock(mutex_);
  return remote_.find(rkey) != nullptr;
}

}  // namespace rbt::transport::shm
