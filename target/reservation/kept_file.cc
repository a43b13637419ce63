#include "target/reservation/kept_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <utility>

#include "transport/shm/descriptor.h"

namespace rbt::target {

using transport::shm::Descriptor;

int FileCalls::create(const char* path) {
  return ::open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
}
ssize_t FileCalls::write(int fd, std::span<const std::byte> bytes) {
  return ::write(fd, bytes.data(), bytes.size());
}
int FileCalls::sync(int fd) {
  return ::fsync(fd);
}
int FileCalls::rename(const char* from, const char* to) {
  return ::rename(from, to);
}
int FileCalls::open_directory(const char* path) {
  return ::open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

Result<std::optional<std::vector<std::byte>>> read_kept_file(const std::string& path, std::size_t most) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.valid()) {
    if (errno == ENOENT) return std::optional<std::vector<std::byte>>();
    return errno_failure(errno, "opening " + path);
  }
  std::vector<std::byte> bytes(most + 1);
  std::size_t used = 0;
  while (used < bytes.size()) {
    const ssize_t read = ::read(file.get(), &bytes[used], bytes.size() - used);
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) return errno_failure(errno, "reading " + path);
    if (read == 0) break;
    used += static_cast<std::size_t>(read);
  }
  if (used > most) return failure(ErrorKind::mismatch, fmt::format("it has more than {} bytes", most));
  bytes.resize(used);
  return std::optional(std::move(bytes));
}

Result<void> replace_kept_file(const std::string& path, std::span<const std::byte> bytes, FileCalls& calls) {
  const std::string fresh = path + ".new";
  const auto fail_with = [&](std::string_view what, const std::string& on) -> Result<void> {
    const int error = errno;
    ::unlink(fresh.c_str());
    return errno_failure(error, fmt::format("{} {}", what, on));
  };
  {
    const Descriptor file(calls.create(fresh.c_str()));
    if (!file.valid()) return errno_failure(errno, "creating " + fresh);
    while (!bytes.empty()) {
      const ssize_t written = calls.write(file.get(), bytes);
      if (written < 0 && errno == EINTR) continue;
      if (written == 0) errno = ENOSPC;
      if (written <= 0) return fail_with("writing", fresh);
      bytes = bytes.subspan(static_cast<std::size_t>(written));
    }
    if (calls.sync(file.get()) != 0) return fail_with("making durable", fresh);
  }
  if (calls.rename(fresh.c_str(), path.c_str()) != 0) return fail_with("renaming to " + path, fresh);
  const std::string directory = std::filesystem::path(path).parent_path().string();
  const Descriptor folder(calls.open_directory(directory.empty() ? "." : directory.c_str()));
  if (!folder.valid() || calls.sync(folder.get()) != 0)
    return errno_failure(errno, fmt::format("making the new {} durable", path));
  return {};
}

}  // namespace rbt::target
