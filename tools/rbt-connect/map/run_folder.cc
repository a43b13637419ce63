// The folder with the states: files, locks.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <system_error>
#include <thread>

#include "common/log.h"
#include "tools/rbt-connect/map/state.h"

namespace rbt::tools::map {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t kFileMax = 256 * 1024;
// holder() has a lock for a moment to see that nobody has it.
constexpr int kLockTries = 20;
constexpr Duration kLockPause = std::chrono::milliseconds(5);

std::optional<pid_t> pid_in(int fd) noexcept {
  std::array<char, 16> text{};
  const ssize_t size = ::pread(fd, text.data(), text.size(), 0);
  pid_t pid = 0;
  if (size <= 0 || std::from_chars(text.data(), text.data() + size, pid).ec != std::errc() || pid <= 0)
    return std::nullopt;
  return pid;
}

bool write_all(int fd, std::string_view text) noexcept {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

// Whether the file of that name is still the one that is open: whoever forgets a name removes its file.
bool same_file(int fd, const fs::path& path) noexcept {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

}  // namespace

// ---- locks

NameLock::~NameLock() {
  if (fd_ >= 0) ::close(fd_);
}

void NameLock::forget() noexcept {
  ::unlink(path_.c_str());
}

Result<NameLock> RunFolder::lock(std::string_view name) const {
  const fs::path path = file(name, ".lock");
  int tries = 0;
  while (true) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
      return errno_failure(errno, fmt::format("opening {}", path.string()),
                           errno == EACCES ? "run it as root, or set RBT_RUN_DIR to a folder of your own" : "");
    NameLock lock(fd, path);
    if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK && ++tries < kLockTries) {
        std::this_thread::sleep_for(kLockPause);
        continue;
      }
      if (errno != EWOULDBLOCK) return errno_failure(errno, fmt::format("locking {}", path.string()));
      const auto pid = pid_in(fd);
      return failure(ErrorKind::in_use,
                     fmt::format("'{}' is the name of a mapped volume (process {}): rbt-connect ls shows all of them; "
                                 "choose another name with --as",
                                 name, pid ? std::to_string(*pid) : "unknown"));
    }
    if (!same_file(fd, path)) continue;
    if (::ftruncate(fd, 0) != 0 || !write_all(fd, fmt::format("{}\n", ::getpid())))
      return errno_failure(errno, fmt::format("writing {}", path.string()));
    return lock;
  }
}

std::optional<pid_t> RunFolder::holder(std::string_view name) const {
  const int fd = ::open(file(name, ".lock").c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return std::nullopt;
  std::optional<pid_t> pid;
  if (::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK) pid = pid_in(fd).value_or(0);
  ::close(fd);
  return pid;
}

bool RunFolder::holds(pid_t pid, std::string_view name) const {
  std::error_code error;
  const fs::path lock = fs::canonical(file(name, ".lock"), error);
  if (error) return false;
  for (const auto& each : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), error))
    if (fs::read_symlink(each.path(), error) == lock) return true;
  return false;
}

// ---- files

RunFolder RunFolder::chosen() {
  const char* const chosen = std::getenv("RBT_RUN_DIR");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  std::error_code error;  // absolute, for the process leaves the folder it was started in
  return RunFolder(fs::absolute(chosen != nullptr && *chosen != '\0' ? chosen : "/run/rbt", error));
}

fs::path RunFolder::file(std::string_view name, std::string_view ending) const {
  return path_ / fmt::format("{}{}", name, ending);
}

Result<void> RunFolder::prepare() const {
  if (::mkdir(path_.c_str(), 0755) == 0 || errno == EEXIST) return {};
  return errno_failure(errno, fmt::format("making the folder {}", path_.string()),
                       errno == EACCES ? "run it as root, or set RBT_RUN_DIR to a folder of your own" : "");
}

// No fsync: a machine that goes down takes /run and every device along.
Result<void> RunFolder::write(const State& state) const {
  const fs::path path = file(state.name, ".json");
  const fs::path fresh = file(state.name, ".json.new");
  const int fd = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return errno_failure(errno, fmt::format("opening {}", fresh.string()));
  const bool complete = write_all(fd, to_text(state));
  const int error = complete ? 0 : errno;
  ::close(fd);
  if (complete && ::rename(fresh.c_str(), path.c_str()) == 0) return {};
  const int why = complete ? errno : error;
  ::unlink(fresh.c_str());
  return errno_failure(why, fmt::format("writing {}", path.string()));
}

Result<State> RunFolder::read(std::string_view name) const {
  const fs::path path = file(name, ".json");
  std::ifstream stream(path);
  if (!stream) {
    if (errno != ENOENT)
      return errno_failure(errno, fmt::format("opening {}", path.string()), errno == EACCES ? "run it as root" : "");
    return failure(ErrorKind::not_found,
                   fmt::format("no volume '{}' is mapped: rbt-connect ls shows those that are", printable(name, 80)));
  }
  std::string text(kFileMax, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(stream.gcount()));
  auto state = parse_state(text);
  if (!state) return failure(std::move(state.error()).within(path.string()));
  if (state->name != name)
    return failure(ErrorKind::invalid_argument, fmt::format("{} is the state of '{}'", path.string(), state->name));
  return state;
}

std::vector<std::string> RunFolder::names() const {
  std::vector<std::string> found;
  std::error_code error;
  for (const auto& each : fs::directory_iterator(path_, error)) {
    const std::string name = each.path().stem().string();
    const fs::path ending = each.path().extension();
    if (!check_name(name)) continue;
    if (ending == ".json" || (ending == ".lock" && holder(name))) found.push_back(name);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

void RunFolder::sweep() const {
  std::error_code error;
  std::vector<std::string> idle;
  for (const auto& each : fs::directory_iterator(path_, error))
    if (const std::string name = each.path().stem().string(); each.path().extension() == ".lock" && check_name(name))
      idle.push_back(name);
  for (const std::string& name : idle)
    if (auto held = lock(name); held && !fs::exists(file(name, ".json"), error)) {
      remove(name);
      held->forget();
    }
}

void RunFolder::remove(std::string_view name) const noexcept {
  for (const auto* ending : {".sock", ".log", ".json.new", ".json"})
    ::unlink(file(name, ending).c_str());
}

}  // namespace rbt::tools::map
