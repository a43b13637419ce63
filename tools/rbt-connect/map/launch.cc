#include "tools/rbt-connect/map/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <system_error>

#include "common/clock.h"
#include "tools/rbt-connect/map/control.h"

namespace rbt::tools::map {

namespace {

constexpr int kPollMs = 200;  // how soon an interruption is seen that came just before the poll

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was killed by signal {}", WTERMSIG(status));
  return fmt::format("ended with status {}", WEXITSTATUS(status));
}

// In the child, between fork and exec: nothing but system calls.
[[noreturn]] void become(const std::string& program, const std::vector<char*>& words) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  ::dup2(null, STDIN_FILENO);
  ::dup2(null, STDOUT_FILENO);
  static_cast<void>(::chdir("/"));
  ::execv(program.c_str(), words.data());
  ::execv("/proc/self/exe", words.data());  // replaced since, by a newer one perhaps
  ::_exit(127);
}

Result<std::string> device_of(std::string_view line) {
  auto answer = parse_answer(line);
  if (!answer) return failure(std::move(answer.error()));
  const Json device = answer->value("device", Json());
  if (!device.is_string()) return failure(ErrorKind::internal, "the volume's process named no device");
  return device.get<std::string>();
}

}  // namespace

Result<std::string> launch(const std::vector<std::string>& words, const Interrupt& interrupt) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_failure(errno, "making a pipe");
  std::vector<std::string> all{"rbt-connect"};
  all.insert(all.end(), words.begin(), words.end());
  all.insert(all.end(), {"--detached", std::to_string(ends[1])});
  std::vector<char*> raw;
  for (std::string& word : all)
    raw.push_back(word.data());
  raw.push_back(nullptr);

  std::error_code error;  // by its name: ps and others show it
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  const pid_t child = ::fork();
  if (child == 0) {
    ::fcntl(ends[1], F_SETFD, 0);
    become(program, raw);
  }
  const int fork_error = errno;
  ::close(ends[1]);
  if (child < 0) {
    ::close(ends[0]);
    return errno_failure(fork_error, "starting the volume's process");
  }
  std::string line;
  bool told = false;
  while (line.find('\n') == std::string::npos) {
    if (interrupt.raised() && !told) {
      told = true;
      ::kill(child, SIGTERM);
    }
    pollfd poll{.fd = ends[0], .events = POLLIN, .revents = 0};
    if (::poll(&poll, 1, kPollMs) <= 0) continue;
    std::array<char, 4096> piece{};
    const ssize_t size = ::read(ends[0], piece.data(), piece.size());
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;
    line.append(piece.data(), static_cast<std::size_t>(size));
  }
  ::close(ends[0]);
  if (line.find('\n') != std::string::npos) return device_of(line);
  int status = 0;
  ::waitpid(child, &status, 0);
  return failure(ErrorKind::internal, fmt::format("the volume's process {} before it was ready", how_it_ended(status)));
}

Starter::Starter(int fd) noexcept : fd_(fd) {
  if (fd_ >= 0) ::fcntl(fd_, F_SETFD, FD_CLOEXEC);  // not our children's
}

Starter::~Starter() {
  if (fd_ >= 0) ::close(fd_);
}

void Starter::say(const std::string& line) {
  std::size_t sent = 0;
  while (sent < line.size()) {
    const ssize_t size = ::write(fd_, line.data() + sent, line.size() - sent);
    if (size < 0 && errno == EINTR) continue;
    if (size <= 0) break;  // nobody waits any more
    sent += static_cast<std::size_t>(size);
  }
  ::close(fd_);
  fd_ = -1;
}

void Starter::ready(const std::string& device) {
  if (fd_ >= 0) {
    say(Json{{"ok", true}, {"device", device}}.dump() + "\n");
  } else if (!detached_) {
    fmt::print("{}\n", device);
    std::fflush(stdout);
  }
}

void Starter::failed(const Error& error) {
  if (fd_ >= 0) say(answer_of(error).dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace rbt::tools::map
