// What the kernel does at a moment that a test cannot choose, or on a machine that a test does not have: a lease broken as
// soon as it is there, and membarrier(2) refused. A program of its own, because both replace something for all of it.

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "common/log.h"
#include "tests/unit/coherence_table.h"
#include "tests/unit/pinning_adapter.h"
#include "transport/coherence/lease.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace rbt::transport::coherence;
using namespace std::chrono_literals;

namespace {

/// Called once, when F_SETLEASE has given a lease and its caller does not know yet. A global, because fcntl() is.
std::function<void(int)> after_lease;  // NOLINT(cert-err58-cpp)

}  // namespace

/// In place of the C library's, for all of this program.
extern "C" int fcntl(int descriptor, int command, ...) {
  std::va_list list;
  va_start(list, command);
  void* const argument = va_arg(list, void*);
  va_end(list);
  const auto result = static_cast<int>(::syscall(SYS_fcntl, descriptor, command, argument));
  if (result == 0 && command == F_SETLEASE && reinterpret_cast<std::uintptr_t>(argument) == F_WRLCK && after_lease)
    std::exchange(after_lease, nullptr)(descriptor);
  return result;
}

namespace {

/// /proc/self/task/TID of the thread of that name.
std::filesystem::path thread_folder(const std::string& name) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string found;
    std::getline(std::ifstream(task.path() / "comm") >> std::ws, found);
    if (found == name) return task.path();
  }
  FAIL("no thread is called " << name);
  return {};
}

bool signal_pending(const std::filesystem::path& thread, int number) {
  std::ifstream status(thread / "status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("SigPnd:")) return (std::stoull(line.substr(7), nullptr, 16) >> (number - 1) & 1) != 0;
  FAIL("no pending signals in " << thread);
  return false;
}

}  // namespace

TEST_CASE("A lease that is broken before its owner knows that it has it is given back all the same") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  const auto watch_thread = thread_folder("rbt-coherence");
  PinningDomain domain;
  LeasedFile file(*monitor, domain);
  file.lease();
  std::atomic<bool> opened{false};
  std::thread opener;
  after_lease = [&](int descriptor) {
    opener = std::thread([&] {
      ::close(::open(file.path.c_str(), O_RDWR | O_CLOEXEC));  // waits for the lease
      opened = true;
    });
    while (::syscall(SYS_fcntl, descriptor, F_GETLEASE, 0) == F_WRLCK)
      std::this_thread::yield();
    while (signal_pending(watch_thread, SIGRTMAX - 2))
      std::this_thread::yield();
    (void)file.region->counters();  // the turn that took the signal, and found nobody whose it was, is over
  };
  if (!file.region->restore()) file.region->restore_when_possible();  // broken before it was coherent, or after
  CHECK(within(20s, [&] { return opened.load(); }));                  // /proc/sys/fs/lease-break-time is 45 s
  opener.join();
  CHECK(file.comes_back());
}

// --- membarrier(2) ----------------------------------------------------------------------------------------------------

namespace {

class LogKeeper final : public Logger {
 public:
  LogKeeper() : Logger(LogLevel::info) {}
  std::string text() {
    const std::lock_guard lock(mutex_);
    return text_;
  }

 private:
  void write(LogLevel, std::string message) override {
    const std::lock_guard lock(mutex_);
    text_ += message + '\n';
  }
  std::mutex mutex_;
  std::string text_;
};

/// For this thread and those that it will start.
void refuse_membarrier() {
  std::array<sock_filter, 4> program{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{static_cast<unsigned short>(program.size()), program.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) != 0)
    std::abort();
}

struct Flag final : Registration {
  Result<void> fence() override {
    registered.store(false, std::memory_order_relaxed);
    return {};
  }
  Result<void> restore() override {
    registered.store(true, std::memory_order_relaxed);
    return {};
  }
  std::atomic<bool> registered{false};
};

/// One thread uses the region as fast as it can, this one takes it away and gives it back.
/// (That the barrier itself is missing is not seen here: between what the monitor stores and what it loads then there is a
/// system call, and no store buffer waits that long.)
void claim_never_granted_when_fenced(Logger& log) {
  const ManualClock clock;  // stands still: nobody is overdue
  auto monitor = Monitor::start(clock, log, {.threads = MonitorOptions::Threads::manual}).value();
  Flag flag;
  auto region = monitor->add(flag, {}, {.name = "flag"}).value();
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> granted{0}, wrong{0};
  std::thread user_thread([&] {
    Silent silent;
    User user(silent);
    Use use(*region, user);
    while (!stop.load(std::memory_order_relaxed)) {
      const Pass pass = use.enter();
      if (!pass) continue;
      if (!flag.registered.load(std::memory_order_relaxed)) ++wrong;
      (void)use.leave(pass);
      granted.store(granted.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  });
  for (int round = 0; round < 500; ++round) {
    if (!region->restore()) FAIL("it is not restored");
    const std::uint64_t before = granted;
    while (granted == before)
      std::this_thread::yield();
    (void)region->invalidate();  // begins
    while (region->state() != RegionState::fenced) {
      (void)monitor->turn_watch();
      (void)monitor->turn_fence();
    }
  }
  CHECK(within(30s, [&] { return region->restore().has_value() && granted > 0; }));
  stop = true;
  user_thread.join();
  CHECK(wrong == 0);
  CHECK(region->counters().overdue == 0);
}

}  // namespace

TEST_CASE("No request is granted a region that is fenced") {
  LogKeeper log;
  claim_never_granted_when_fenced(log);
  CHECK(log.text().empty());
}

TEST_CASE(
    "Where the kernel refuses membarrier no request is granted a region that is fenced either, and the log has it") {
  LogKeeper log;
  std::thread([&] {
    refuse_membarrier();
    claim_never_granted_when_fenced(log);
  }).join();
  CHECK_THAT(log.text(), Catch::Contains("membarrier"));
}
