#include "initiator/present/aside.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "common/check.h"

namespace rbt::initiator {

// Lives as long as the one of the two that ends last.
struct Aside::Shared {
  explicit Shared(int descriptor) noexcept : fd(descriptor) {}
  ~Shared() { ::close(fd); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  const int fd;  // readable: there is a result
  std::mutex mutex;
  std::optional<Result<void>> result;  // guarded by mutex
};

Result<std::unique_ptr<Aside>> Aside::create(transport::Reactor& reactor) {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return errno_failure(errno, "eventfd", "raise the limit of open files (`ulimit -n`)");
  std::unique_ptr<Aside> aside(new Aside(reactor, std::make_shared<Shared>(fd)));
  auto watched = reactor.watch(fd, EPOLLIN, [raw = aside.get()](std::uint32_t) { raw->on_readable(); });
  if (!watched) return rbt::failure(std::move(watched.error()));
  return aside;
}

Aside::~Aside() {
  reactor_.unwatch(shared_->fd);
}

void Aside::start(Work work, Done done) {
  check(!running(), "one at a time");
  done_ = std::move(done);
  // Signals are for the threads that expect them.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread([shared = shared_, work = std::move(work)] {
    Result<void> result = work();
    {
      const std::lock_guard lock(shared->mutex);
      shared->result = std::move(result);
    }
    ::eventfd_write(shared->fd, 1);
  }).detach();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Aside::on_readable() {
  eventfd_t count = 0;
  ::eventfd_read(shared_->fd, &count);
  std::optional<Result<void>> result;
  {
    const std::lock_guard lock(shared_->mutex);
    result = std::exchange(shared_->result, std::nullopt);
  }
  if (result) std::exchange(done_, nullptr)(std::move(*result));
}

Result<void> Aside::run(Volume& volume, Instant deadline, std::string what, Work work) {
  // On the heap: a result that comes after the deadline finds its place.
  auto result = std::make_shared<std::optional<Result<void>>>();
  start(std::move(work), [result](Result<void> ended) { *result = std::move(ended); });
  if (!volume.run_until([&] { return result->has_value(); }, deadline))
    return rbt::failure(ErrorKind::timed_out,
                        fmt::format("{}: the kernel has not come back in time; it may still", what));
  return std::move(**result);
}

}  // namespace rbt::initiator
