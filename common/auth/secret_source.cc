// Where secrets are kept: files that others cannot read, and the kernel's keyrings.

#include <fcntl.h>
#include <linux/keyctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "common/auth/secret.h"
#include "common/log.h"

namespace rbt::auth {
namespace {

constexpr std::string_view kKeyring = "keyring:";
constexpr mode_t kOthers = S_IRWXO | S_IWGRP;

Result<SharedSecret> parse_read(Wiped& text, std::size_t size, const std::string& what) {
  if (size > kSecretTextMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} has more than the {} bytes of a secret", what, kSecretTextMax));
  auto secret = Secret::parse({reinterpret_cast<const char*>(text.bytes().data()), size});
  if (!secret) return failure(std::move(secret.error()).within(what));
  return secret;
}

Result<SharedSecret> read_descriptor(int fd, const std::string& path) {
  const std::string what = fmt::format("the secret in {}", printable(path));
  struct stat status {};
  if (::fstat(fd, &status) != 0) return errno_failure(errno, "looking at " + what);
  if (!S_ISREG(status.st_mode)) return failure(ErrorKind::invalid_argument, what + ": that is not a file");
  if (status.st_uid != 0 && status.st_uid != ::geteuid())
    return failure(ErrorKind::permission,
                   fmt::format("{}: the file belongs to user {}; it has to be root's or that of this process ({})",
                               what, status.st_uid, ::geteuid()));
  if ((status.st_mode & kOthers) != 0)
    return failure(
        ErrorKind::permission,
        fmt::format("{}: its mode is {:04o}, so that others can read or change it; `chmod 600` it, and make a new "
                    "secret if anybody may have read it",
                    what, status.st_mode & 07777));
  Wiped text(kSecretTextMax + 1);
  std::size_t size = 0;
  while (size < text.bytes().size()) {
    const ssize_t got = ::read(fd, text.bytes().data() + size, text.bytes().size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno_failure(errno, "reading " + what);
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
  }
  return parse_read(text, size, what);
}

Result<SharedSecret> read_key(const std::string& description) {
  const std::string what = fmt::format("the secret in the key '{}'", printable(description));
  const long key = ::syscall(SYS_request_key, "user", description.c_str(), nullptr, 0);
  if (key < 0)
    return errno_failure(errno, "looking for " + what,
                         "add it to a keyring of this process: `keyctl padd user NAME @s < FILE`");
  Wiped text(kSecretTextMax + 1);
  const long size = ::syscall(SYS_keyctl, KEYCTL_READ, key, text.bytes().data(), text.bytes().size());
  if (size < 0) return errno_failure(errno, "reading " + what);
  return parse_read(text, std::min(static_cast<std::size_t>(size), text.bytes().size()), what);
}

}  // namespace

Result<SharedSecret> Secret::load(const std::string& source) {
  if (source.starts_with(kKeyring)) return read_key(source.substr(kKeyring.size()));
  if (source.starts_with("DHHC-1:"))  // and it is in nobody's log
    return failure(
        ErrorKind::invalid_argument,
        "a secret is given by the name of its file, or keyring:NAME, not by itself: everybody can read command lines; "
        "this one is to be replaced");
  const int fd = ::open(source.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return errno_failure(errno, fmt::format("opening the secret in {}", printable(source)));
  auto secret = read_descriptor(fd, source);
  ::close(fd);
  return secret;
}

}  // namespace rbt::auth
