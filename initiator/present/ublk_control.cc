#include "initiator/present/ublk_control.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <liburing.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"

namespace rbt::initiator {

namespace {

constexpr const char* kPath = "/dev/ublk-control";
constexpr Duration kRetry = std::chrono::milliseconds(5);  // "not yet": somebody is still letting go

std::string title(const ublk::Control& control, std::uint32_t number) {
  if (&control == &ublk::kAddDev) return "making a ublk device (ADD_DEV)";
  if (&control == &ublk::kGetFeatures) return "asking the kernel what its ublk can do (GET_FEATURES)";
  return fmt::format("ublk device {} ({})", number, control.name);
}

std::string_view remedy(const ublk::Control& control, int error) {
  if (error == EPERM || error == EACCES) return "it takes CAP_SYS_ADMIN: run it as root";
  if (error == ENODEV) return "there is no such device: see /sys/class/ublk-char";
  if (error == EBUSY && &control == &ublk::kStartUserRecovery)
    return "the process that serves it has not ended: only a dead one has a successor";
  if (error == ENOSPC && &control == &ublk::kAddDev) return "all ublk devices are taken: see ublks_max of ublk_drv";
  if (error == EINVAL) return "the kernel's log may say more";
  return {};
}

bool unknown_command(int error) noexcept {
  return error == EOPNOTSUPP || error == 524 /* ENOTSUPP, which is the kernel's own */ || error == ENOTTY;
}

}  // namespace

// The thread's and its owner's: whoever is last closes everything.
struct UblkControl::Shared {
  ~Shared() {
    if (ring_open) io_uring_queue_exit(&ring);
    if (fd >= 0) ::close(fd);
  }
  void serve();
  [[nodiscard]] int perform();

  enum class State : std::uint8_t { idle, given, done, quit };
  std::mutex
      mutex;  // guards what follows, but for fd, ring and, while `given`, command and buffer, which are the thread's then
  std::condition_variable changed;
  State state = State::idle;
  int result = 0;
  std::function<void()> wake;
  ublksrv_ctrl_cmd command{};
  std::uint32_t opcode = 0;
  // Not the caller's memory: he may be gone when the kernel writes.
  alignas(8) std::array<std::byte, 256> buffer{};
  int fd = -1;
  bool ring_open = false;
  io_uring ring{};
};

void UblkControl::Shared::serve() {
  std::unique_lock lock(mutex);
  while (true) {
    changed.wait(lock, [this] { return state == State::given || state == State::quit; });
    if (state == State::quit) return;
    lock.unlock();
    const int answer = perform();
    lock.lock();
    if (state == State::quit) return;  // given up meanwhile
    result = answer;
    state = State::done;
    if (wake) wake();
    changed.notify_all();
  }
}

int UblkControl::Shared::perform() {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring);
  check(entry != nullptr, "one command at a time");
  std::memset(entry, 0, 2 * sizeof *entry);
  entry->opcode = IORING_OP_URING_CMD;
  entry->fd = fd;
  entry->cmd_op = opcode;
  static_assert(offsetof(io_uring_sqe, addr3) == 48);
  std::memcpy(reinterpret_cast<std::byte*>(entry) + 48, &command, sizeof command);
  int error = io_uring_submit(&ring);
  if (error < 0) return error;
  io_uring_cqe* answer = nullptr;
  do
    error = io_uring_wait_cqe(&ring, &answer);
  while (error == -EINTR);
  if (error < 0) return error;
  const int got = answer->res;
  io_uring_cqe_seen(&ring, answer);
  return got;
}

// ---- open

Result<std::unique_ptr<UblkControl>> UblkControl::open(const Clock& clock, Instant deadline,
                                                       std::function<void()> wake) {
  std::unique_ptr<UblkControl> control(new UblkControl(clock));
  control->shared_ = std::make_shared<Shared>();
  Shared& shared = *control->shared_;
  shared.wake = std::move(wake);
  shared.fd = ::open(kPath, O_RDWR | O_CLOEXEC);
  if (shared.fd < 0) {
    const int error = errno;
    return errno_failure(
        error, fmt::format("opening {}", kPath),
        error == EACCES || error == EPERM
            ? "ublk devices take CAP_SYS_ADMIN: run it as root"
            : "load the module: `modprobe ublk_drv` (Linux 6.0 and newer; Debian 12: the kernel of backports)");
  }
  if (const int error = io_uring_queue_init(4, &shared.ring, IORING_SETUP_SQE128); error != 0)
    return errno_failure(-error, "opening an io_uring for ublk's control commands",
                         "see kernel.io_uring_disabled (sysctl) and, in a container, its seccomp profile");
  shared.ring_open = true;
  if (auto begun = control->begin_thread(); !begun) return failure(std::move(begun.error()));
  if (auto asked = control->ask_features(deadline); !asked) return failure(std::move(asked.error()));
  return control;
}

// Signals are for the program's own threads.
Result<void> UblkControl::begin_thread() {
  sigset_t all{};
  sigset_t before{};
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::error_code refused;
  try {
    thread_ = std::thread([shared = shared_] { shared->serve(); });
  } catch (const std::system_error& error) {
    refused = error.code();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (refused) return errno_failure(refused.value(), "starting a thread for ublk's control commands");
  return {};
}

UblkControl::~UblkControl() {
  if (!thread_.joinable()) return;
  bool stuck = false;
  {
    const std::lock_guard lock(shared_->mutex);
    stuck = shared_->state == Shared::State::given;
    shared_->state = Shared::State::quit;
    shared_->wake = {};
  }
  shared_->changed.notify_all();
  if (stuck)
    thread_.detach();  // it touches nothing but `shared_`
  else
    thread_.join();
}

Result<void> UblkControl::ask_features(Instant deadline) {
  std::uint64_t features = 0;
  features_ = ublk::kFeatureIoctlEncode;  // whoever knows the question knows this number of it
  auto answer = execute({.control = &ublk::kGetFeatures, .number = ~0U, .buffer = &features, .length = sizeof features},
                        deadline);
  if (!answer) return failure(std::move(answer.error()));
  if (*answer == EPERM || *answer == EACCES)
    return errno_failure(*answer, title(ublk::kGetFeatures, 0), remedy(ublk::kGetFeatures, *answer));
  features_ = *answer == 0 ? features : ublk::kFeaturesBefore;
  return {};
}

// ---- a command

Result<int> UblkControl::execute(const Command& command, Instant deadline, const Pass& pass) {
  Shared& shared = *shared_;
  check(command.length <= shared.buffer.size(), "a control command's buffer is a small structure");
  const bool encoded = (features_ & ublk::kFeatureIoctlEncode) != 0;
  {
    const std::lock_guard lock(shared.mutex);
    if (shared.state == Shared::State::given)
      return failure(ErrorKind::timed_out, title(*command.control, command.number) +
                                               ": not tried, for a command before it has never returned");
    shared.command = {};
    shared.command.dev_id = command.number;
    shared.command.queue_id = 0xffff;
    shared.command.len = command.length;
    shared.command.data[0] = command.argument;
    shared.opcode = encoded ? command.control->encoded : command.control->number;
    if (command.length != 0) {
      shared.command.addr = reinterpret_cast<std::uintptr_t>(shared.buffer.data());
      std::memcpy(shared.buffer.data(), command.buffer, command.length);
    }
    shared.state = Shared::State::given;
  }
  shared.changed.notify_all();
  const Instant began = clock_.now();
  const auto done = [&shared] { return shared.state == Shared::State::done; };
  if (pass)
    (void)pass(
        [&] {
          const std::lock_guard lock(shared.mutex);
          return done();
        },
        deadline);
  std::unique_lock lock(shared.mutex);
  if (!shared.changed.wait_for(lock, std::max(deadline - clock_.now(), Duration::zero()), done))
    return failure(ErrorKind::timed_out,
                   fmt::format("{}: the kernel has not answered within {}; the command cannot be taken back. See its "
                               "log (dmesg): a kernel "
                               "that has failed there answers no ublk command any more until it is booted again",
                               title(*command.control, command.number), format_duration(clock_.now() - began)));
  shared.state = Shared::State::idle;
  if (command.length != 0 && shared.result >= 0) std::memcpy(command.buffer, shared.buffer.data(), command.length);
  return shared.result < 0 ? -shared.result : 0;
}

Result<void> UblkControl::run(const Command& command, Instant deadline, const Pass& pass) {
  auto answer = execute(command, deadline, pass);
  if (!answer) return failure(std::move(answer.error()));
  if (*answer == 0) return {};
  return errno_failure(*answer, title(*command.control, command.number), remedy(*command.control, *answer));
}

void UblkControl::pause(const Pass& pass) {
  const auto never = [] { return false; };
  if (pass) return void(pass(never, clock_.now() + kRetry));
  std::unique_lock lock(shared_->mutex);
  (void)shared_->changed.wait_for(lock, kRetry, never);
}

// ---- the commands

Result<ublksrv_ctrl_dev_info> UblkControl::add(const ublksrv_ctrl_dev_info& wanted, Instant deadline) {
  ublksrv_ctrl_dev_info made = wanted;
  auto done =
      run({.control = &ublk::kAddDev, .number = wanted.dev_id, .buffer = &made, .length = sizeof made}, deadline);
  if (!done) return failure(std::move(done.error()));
  return made;
}

Result<ublksrv_ctrl_dev_info> UblkControl::info(std::uint32_t number, Instant deadline) {
  ublksrv_ctrl_dev_info info{};
  auto done = run({.control = &ublk::kGetDevInfo, .number = number, .buffer = &info, .length = sizeof info}, deadline);
  if (!done) return failure(std::move(done.error()));
  return info;
}

Result<void> UblkControl::set_params(std::uint32_t number, const ublk_params& params, Instant deadline) {
  ublk_params given = params;
  given.len = sizeof given;
  return run({.control = &ublk::kSetParams, .number = number, .buffer = &given, .length = sizeof given}, deadline);
}

Result<ublk_params> UblkControl::params(std::uint32_t number, Instant deadline) {
  ublk_params params{};
  params.len = sizeof params;
  auto done =
      run({.control = &ublk::kGetParams, .number = number, .buffer = &params, .length = sizeof params}, deadline);
  if (!done) return failure(std::move(done.error()));
  return params;
}

Result<void> UblkControl::start(std::uint32_t number, Instant deadline, const Pass& pass) {
  return run({.control = &ublk::kStartDev, .number = number, .argument = static_cast<std::uint64_t>(::getpid())},
             deadline, pass);
}

Result<void> UblkControl::stop(std::uint32_t number, Instant deadline, const Pass& pass) {
  return run({.control = &ublk::kStopDev, .number = number}, deadline, pass);
}

// Asynchronously where the kernel can: so this thread is not lost to a process that keeps /dev/ublkcN open.
Result<void> UblkControl::remove(std::uint32_t number, Instant deadline, const Pass& pass) {
  auto answer = execute({.control = &ublk::kDelDevAsync, .number = number}, deadline, pass);
  if (!answer) return failure(std::move(answer.error()));
  if (unknown_command(*answer)) return run({.control = &ublk::kDelDev, .number = number}, deadline, pass);
  if (*answer != 0)
    return errno_failure(*answer, title(ublk::kDelDevAsync, number), remedy(ublk::kDelDevAsync, *answer));
  while (true) {
    ublksrv_ctrl_dev_info info{};
    auto there =
        execute({.control = &ublk::kGetDevInfo, .number = number, .buffer = &info, .length = sizeof info}, deadline);
    if (!there) return failure(std::move(there.error()));
    if (*there == ENODEV) return {};
    if (clock_.now() >= deadline)
      return failure(
          ErrorKind::in_use,
          fmt::format("ublk device {} is deleted, but a process has /dev/ublkc{} open: it goes when that one ends",
                      number, number));
    pause(pass);
  }
}

Result<void> UblkControl::begin_recovery(std::uint32_t number, Instant patience, Instant deadline, const Pass& pass) {
  while (true) {
    auto answer = execute({.control = &ublk::kStartUserRecovery, .number = number}, deadline, pass);
    if (!answer) return failure(std::move(answer.error()));
    if (*answer == 0) return {};
    // EBUSY until the kernel has noticed that its process is dead and has let go of /dev/ublkcN.
    if (*answer != EBUSY || clock_.now() >= patience)
      return errno_failure(*answer, title(ublk::kStartUserRecovery, number), remedy(ublk::kStartUserRecovery, *answer));
    pause(pass);
  }
}

Result<void> UblkControl::end_recovery(std::uint32_t number, Instant deadline, const Pass& pass) {
  return run({.control = &ublk::kEndUserRecovery, .number = number, .argument = static_cast<std::uint64_t>(::getpid())},
             deadline, pass);
}

Result<void> UblkControl::update_size(std::uint32_t number, std::uint64_t sectors, Instant deadline, const Pass& pass) {
  return run({.control = &ublk::kUpdateSize, .number = number, .argument = sectors}, deadline, pass);
}

}  // namespace rbt::initiator
